"""`verify` finds every damage and says where the first is, also where all checksums agree."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from megatron.core.datasets import indexed_dataset as megatron

from dsm_engine.cli import main
from dsm_engine.data import tokenized_dataset
from dsm_engine.data.manifest import DATA_SUFFIXES, sealed
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.errors import DsmError

ATTRIBUTES = {"source": "gsm8k", "language": "en", "format": "tir", "topic": "algebra"}
LENGTHS = [4, 2, 2, 1, 12]  # the third ends with the first chunk of the .bin
IDS_BEGIN = 128
VALUES_BEGIN = IDS_BEGIN + 8 * 6
CODES_BEGIN = VALUES_BEGIN + 8 * 5


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five documents, uint16, in chunks of 16 bytes."""
    monkeypatch.setattr(tokenized_dataset, "CHUNK_BYTES", 16)
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=1000) as writer:
        for i, length in enumerate(LENGTHS):
            spans = [(1 if length > 1 else 0, length)]
            writer.add(list(range(i, i + length)), spans, id=f"题{i}", **ATTRIBUTES)
        writer.finish()
    return tmp_path / "x"


def _overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _reseal(prefix: Path) -> None:
    """Makes a manifest whose checksums are those of the files as they are."""
    path = Path(f"{prefix}.manifest.json")
    manifest = json.loads(path.read_text())
    size = manifest["chunk_bytes"]
    for suffix in DATA_SUFFIXES:
        content = Path(f"{prefix}{suffix}").read_bytes()
        manifest["files"][suffix] = {
            "bytes": len(content),
            "xxh3": xxhash.xxh3_64_hexdigest(content),
            "chunks": [
                xxhash.xxh3_64_hexdigest(content[i : i + size])
                for i in range(0, len(content), size)
            ],
        }
    path.write_text(json.dumps(sealed(manifest)))


def test_the_manifest_has_the_xxh3_of_each_chunk_and_of_the_whole(prefix: Path) -> None:
    path = Path(f"{prefix}.manifest.json")
    before = json.loads(path.read_text())
    _reseal(prefix)
    assert json.loads(path.read_text()) == before
    assert (before["format_version"], before["chunk_bytes"]) == (2, 16)
    assert len(before["files"][".bin"]["chunks"]) == 3  # 42 bytes


def test_chunks_are_4_mib(tmp_path: Path) -> None:
    tokens = np.arange(3 << 20) % 1000
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=1000) as writer:
        writer.add(tokens, [], id="", **ATTRIBUTES)
        writer.finish()
    manifest = TokenizedDataset(tmp_path / "x").manifest
    content = tokens.astype(np.uint16).tobytes()
    assert manifest["chunk_bytes"] == 4 << 20
    assert manifest["files"][".bin"]["chunks"] == [
        xxhash.xxh3_64_hexdigest(content[: 4 << 20]),
        xxhash.xxh3_64_hexdigest(content[4 << 20 :]),
    ]


@pytest.mark.parametrize(
    ("suffix", "offset", "where"),
    [
        (".bin", 0, r"bytes 0 to 16 \(documents 0 to 2\)"),
        (".bin", 17, r"bytes 16 to 32 \(documents 3 to 4\)"),
        (".bin", 41, r"bytes 32 to 42 \(document 4\)"),
        (".idx", 40, "bytes 32 to 48,"),
        (".spans", 16 * 4 + 8, r"bytes 64 to 80 \(documents 0 to 1\)"),
        (".spans", 16 * 6 + 8, r"bytes 96 to 112 \(documents 3 to 4\)"),
        (".spans", 72 + 8 * 5, r"bytes 112 to 128 \(documents 0 to 1\)"),
        (".spans", 72 + 8 * 5 + 8 * 3, r"bytes 128 to 144 \(documents 2 to 3\)"),
        (".attributes", CODES_BEGIN, "bytes 208 to 224,"),
    ],
)
def test_damage_is_located(prefix: Path, suffix: str, offset: int, where: str) -> None:
    dataset = TokenizedDataset(prefix)
    path = Path(f"{prefix}{suffix}")
    _overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    message = rf"x\{suffix}: is damaged: expected xxh3 \w{{16}} from x.manifest.json for {where}"
    with pytest.raises(DsmError, match=message):
        dataset.verify()


def test_of_two_damaged_chunks_the_first_is_named(prefix: Path) -> None:
    dataset = TokenizedDataset(prefix)
    for offset in (40, 20):
        _overwrite(Path(f"{prefix}.bin"), offset, b"\xee")
    with pytest.raises(DsmError, match="bytes 16 to 32"):
        dataset.verify()


@pytest.mark.parametrize(
    ("suffix", "offset", "content", "message"),
    [
        (".idx", 34, struct.pack("<i", 3), r"x\.idx: is damaged: sequence 0, "),
        (".idx", 34 + 20 + 16, struct.pack("<q", 14), r"x\.idx: is damaged: sequence 1, "),
        (".idx", 34 + 60 + 16, struct.pack("<q", 9), r"x\.idx: is damaged: document 1: expected"),
        (".bin", 2 * 5, struct.pack("<H", 1000), r"x\.bin: .*document 1 has the token id 1000"),
        (".spans", 64 + 8, struct.pack("<q", 2), r"x\.spans: is damaged: document 0: .*spans that"),
        (".spans", 64 + 16, struct.pack("<q", 9), r"x\.spans: is damaged: document 1: .*offsets"),
        (".spans", 112 + 4, struct.pack("<i", 5), "document 0: expected spans .* found 1 to 5"),
        (".spans", 112 + 12, struct.pack("<i", 1), "document 1: expected spans .* found 1 to 1"),
        (".spans", 112 + 4, struct.pack("<i", 3), r"expected 16 supervised tokens .*found 15"),
        (".attributes", IDS_BEGIN + 8, struct.pack("<q", 99), "document 0: expected offsets of id"),
        (".attributes", IDS_BEGIN + 8, struct.pack("<q", 5), "document 1: expected an id that beg"),
        (".attributes", CODES_BEGIN + 4, b"\x01", "document 1 has source number 1 of 1"),
        (".attributes", -1, b"\xff", "ids are not UTF-8"),
    ],
)
def test_a_fault_is_found_where_all_checksums_agree(prefix, suffix, offset, content, message):
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    _overwrite(path, offset % len(whole), content)
    _reseal(prefix)
    dataset = TokenizedDataset(prefix)
    with pytest.raises(DsmError, match=message):
        dataset.verify()


def test_a_file_that_cannot_be_read_is_one_line(prefix: Path) -> None:
    dataset = TokenizedDataset(prefix)
    Path(f"{prefix}.spans").unlink()
    with pytest.raises(DsmError, match=r"x\.spans: cannot be read: No such file"):
        dataset.verify()


def _write_with_megatron(prefix: Path) -> Path:
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    builder.add_document(torch.tensor([1, 2, 3]), [1, 2])
    builder.add_document(torch.tensor([4]), [1])
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_megatrons_files_are_checked_and_have_no_checksum(tmp_path: Path, capsys) -> None:
    assert main(["verify", str(_write_with_megatron(tmp_path / "m"))]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the structure is sound; 2 documents in 3 sequences of int32" in printed
    assert "there is no manifest and so no checksum" in printed


def test_a_damaged_index_of_megatron_is_found(tmp_path: Path, capsys) -> None:
    prefix = _write_with_megatron(tmp_path / "m")
    _overwrite(Path(f"{prefix}.idx"), 34 + 12 + 8, struct.pack("<q", 8))
    assert main(["verify", str(prefix)]) == 2
    assert "m.idx: is damaged: sequence 0" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".spans", ".attributes"])
def test_a_tokenized_dataset_that_lost_its_manifest_is_not_taken_for_megatrons(
    prefix: Path, suffix: str, capsys
) -> None:
    Path(f"{prefix}.manifest.json").unlink()
    Path(f"{prefix}{suffix}").unlink()
    assert main(["verify", str(prefix)]) == 2
    assert "x.manifest.json: no tokenized dataset there" in capsys.readouterr().err
