"""A tokenized dataset is whole and of one piece, or it is refused."""

import copy
import functools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dsm_engine.data.manifest import sealed
from dsm_engine.data.sidecars import DocumentAttributes
from dsm_engine.data.tokenized_dataset import (
    DATA_SUFFIXES,
    TokenizedDataset,
    TokenizedDatasetWriter,
)
from dsm_engine.errors import DsmError

ATTRIBUTES = {"source": "gsm8k", "language": "en", "format": "tir", "topic": "algebra"}
TOKENIZER = {"kind": "k", "fingerprint": "abc", "vocab_size": 1000, "bos_id": None, "eos_id": 2}
RECIPE = {"tokenizer": "t.model", "bos_token": None, "eos_token": "</s>"}
DOCUMENTS = [
    ([1, 2, 3, 4], [(2, 4)], "a"),
    ([5, 6], [(0, 2)], "b"),
    ([7, 8, 9, 10, 11, 12], [(1, 2), (3, 4), (4, 6)], "第三"),
    ([13], [], ""),
]


def _write(prefix: Path, *, vocab_size: int = 1000, **manifest_fields) -> Path:
    with TokenizedDatasetWriter(prefix, vocab_size=vocab_size) as writer:
        for ids, spans, id in DOCUMENTS:
            writer.add(ids, spans, id=id, **ATTRIBUTES)
        writer.finish(**manifest_fields)
    return prefix


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, "uint16"), (102400, "int32")])
def test_what_is_written_is_what_is_read(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    dataset = TokenizedDataset(_write(tmp_path / "x.v1", vocab_size=vocab_size))
    dataset.verify()
    assert dataset.num_documents == 4
    assert dataset.lengths.tolist() == [4, 2, 6, 1]
    for i, (ids, spans, id) in enumerate(DOCUMENTS):
        assert dataset.document(i).tolist() == ids
        assert dataset.document(i).dtype == dtype
        assert [tuple(span) for span in dataset.spans(i).tolist()] == spans
        assert dataset.attributes(i) == DocumentAttributes(id=id, **ATTRIBUTES)


def test_the_manifest_counts_and_carries_the_callers_fields(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", tokenizer=TOKENIZER, ledger={"kept": 4})
    manifest = json.loads(Path(f"{prefix}.manifest.json").read_text())
    assert (manifest["documents"], manifest["tokens"]) == (4, 13)
    # The first token of a document is nobody's label.
    assert manifest["supervised_tokens"] == 2 + 1 + 4
    assert manifest["tokenizer"] == TOKENIZER
    assert manifest["ledger"] == {"kept": 4}
    for suffix in DATA_SUFFIXES:
        assert manifest["files"][suffix]["bytes"] == Path(f"{prefix}{suffix}").stat().st_size


def test_an_empty_dataset_is_a_dataset(tmp_path: Path) -> None:
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=10) as writer:
        writer.finish()
    dataset = TokenizedDataset(tmp_path / "x")
    dataset.verify()
    assert (dataset.num_documents, dataset.num_tokens, dataset.lengths.tolist()) == (0, 0, [])
    with pytest.raises(DsmError, match="has 0 documents, asked for document 0"):
        dataset.attributes(0)


def test_arrays_of_any_integer_dtype_are_accepted(tmp_path: Path) -> None:
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=10) as writer:
        for dtype in (np.uint8, np.int32, np.int64):
            writer.add(np.array([1, 9], dtype), [(1, 2)], id="", **ATTRIBUTES)
        writer.finish()
    dataset = TokenizedDataset(tmp_path / "x")
    assert [dataset.document(i).tolist() for i in range(3)] == [[1, 9]] * 3


def test_columns_list_distinct_values_once(tmp_path: Path) -> None:
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=10) as writer:
        for source in ("math", "gsm8k", "math"):
            writer.add([1], [], id="", **(ATTRIBUTES | {"source": source}))
        writer.finish()
    names, codes = TokenizedDataset(tmp_path / "x").attribute_table.column("source")
    assert (names, codes.tolist()) == (["math", "gsm8k"], [0, 1, 0])


@pytest.mark.parametrize(
    ("ids", "spans", "message"),
    [
        ([], [], r"document 'q7': expected 1 to 2\^31 - 1 tokens, found 0"),
        ([1, 1000], [], "token ids must be 0 to 999, found 1 to 1000"),
        ([-1, 4], [], "token ids must be 0 to 999, found -1 to 4"),
        ([1 << 70], [], "token ids are integers"),
        ([1.5], [], "token ids are integers"),
        (np.array([1.5]), [], "token ids are one row of integers"),
        (np.array([[1]]), [], "token ids are one row of integers"),
        ([1, 2], [(0, 3)], "span 0:3 after 0 in 2 tokens"),
        ([1, 2], [(-1, 1)], "span -1:1 after 0 in 2 tokens"),
        ([1, 2], [(1, 1)], "span 1:1 after 0 in 2 tokens"),
        ([1, 2, 3], [(0, 2), (1, 3)], "span 1:3 after 2 in 3 tokens"),
    ],
)
def test_bad_documents_are_rejected(tmp_path: Path, ids, spans, message: str) -> None:
    with (
        pytest.raises(DsmError, match=message),
        TokenizedDatasetWriter(tmp_path / "x", vocab_size=1000) as writer,
    ):
        writer.add(ids, spans, id="q7", **ATTRIBUTES)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("change", [{"id": "\ud800"}, {"topic": "\ud800"}])
def test_attributes_that_are_no_unicode_text_are_rejected(tmp_path: Path, change) -> None:
    with (
        pytest.raises(DsmError, match=r"x: document .*surrogates not allowed"),
        TokenizedDatasetWriter(tmp_path / "x", vocab_size=1000) as writer,
    ):
        writer.add([1], [], **({"id": "q7"} | ATTRIBUTES | change))
    assert _names(tmp_path) == []


def test_leaving_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=10) as writer:
        writer.add([1], [], id="", **ATTRIBUTES)
    assert _names(tmp_path) == []


def test_leaving_without_finish_keeps_the_older_dataset(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x")
    before = {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)}
    with TokenizedDatasetWriter(prefix, vocab_size=10) as writer:
        writer.add([1], [], id="", **ATTRIBUTES)
    assert {name: (tmp_path / name).read_bytes() for name in _names(tmp_path)} == before


def test_a_crash_while_publishing_never_leaves_a_manifest_of_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = _write(tmp_path / "x")
    replace = os.replace

    def fail_at_idx(source, destination) -> None:
        if str(destination).endswith(".idx"):
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_at_idx)
    with pytest.raises(DsmError, match=r"x\.idx: cannot be written: No space left"):
        _write(prefix)
    assert "x.manifest.json" not in _names(tmp_path)
    with pytest.raises(DsmError, match=r"x\.manifest\.json: no tokenized dataset there"):
        TokenizedDataset(prefix)


def test_publishing_replaces_an_older_dataset(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x")
    with TokenizedDatasetWriter(prefix, vocab_size=10) as writer:
        writer.add([1, 2, 3], [(1, 3)], id="new", **ATTRIBUTES)
        writer.finish()
    dataset = TokenizedDataset(prefix)
    dataset.verify()
    assert dataset.attributes(0).id == "new"


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_a_missing_file_is_rejected(tmp_path: Path, suffix: str) -> None:
    prefix = _write(tmp_path / "x")
    Path(f"{prefix}{suffix}").unlink()
    with pytest.raises(DsmError, match=f"x{suffix}: cannot be read"):
        TokenizedDataset(prefix)


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_a_file_of_another_size_is_rejected_at_open(tmp_path: Path, suffix: str) -> None:
    prefix = _write(tmp_path / "x")
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(DsmError, match=rf"x\{suffix}: expected {len(whole)} bytes from"):
            TokenizedDataset(prefix)


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_verify_names_the_file_of_any_flipped_bit(tmp_path: Path, suffix: str) -> None:
    prefix = _write(tmp_path / "x")
    dataset = TokenizedDataset(prefix)
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DsmError, match=rf"x\{suffix}: is damaged: expected xxh3"):
            dataset.verify()


@pytest.mark.parametrize("suffix", [".spans", ".attributes"])
def test_flipped_sidecars_are_rejected_or_read_but_never_crash(tmp_path: Path, suffix: str) -> None:
    prefix = _write(tmp_path / "x")
    path = Path(f"{prefix}{suffix}")
    whole = path.read_bytes()
    rejected = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            dataset = TokenizedDataset(prefix)
            for i in range(dataset.num_documents):
                dataset.spans(i)
                dataset.attributes(i)
        except DsmError:
            rejected += 1
    assert rejected > len(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "expected format_version 2, found 1: preprocess the sources again"),
        ({"chunk_bytes": 0}, "chunk_bytes: input should be greater than or equal to 1"),
        ({"chunk_bytes": 5}, r".bin: expected the xxh3 of each 5 of its 26 bytes, found 1"),
        ({"documents": 5}, "expected 5 documents, found 4 .idx documents"),
        ({"tokens": 12}, "expected 12 tokens, found 13 .bin tokens"),
        ({"supervised_tokens": 1}, "expected 1 supervised_tokens, found 7"),
        ({"dtype": "int32"}, "expected tokens of int32, found uint16"),
        ({"documents": "4"}, r"documents: input should be a valid integer \(found '4'\)"),
        ({"vocab_size": 0}, "vocab_size: input should be greater than or equal to 1"),
        ({"files": {}}, "bytes and xxh3 of .bin are missing"),
        ({"files": 3}, "files: expected keys and values"),
        ({"tokenizer": None}, "tokenizer: expected a section of keys and values"),
        ({"recipe": {"tokenizer": 3}}, "recipe.tokenizer: expected text"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_rejected(tmp_path, change, message) -> None:
    prefix = _write(tmp_path / "x")
    path = Path(f"{prefix}.manifest.json")
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | change)))
    with pytest.raises(DsmError, match=message):
        TokenizedDataset(prefix)


def test_any_key_of_the_manifest_that_is_gone_or_of_another_type_is_one_clear_line(tmp_path: Path):
    prefix = _write(tmp_path / "x", tokenizer=TOKENIZER, recipe=RECIPE)
    path = Path(f"{prefix}.manifest.json")
    whole = json.loads(path.read_text())
    sections = ((), ("files",), ("files", ".idx"), ("tokenizer",), ("recipe",))
    for section in sections:
        keys = list(functools.reduce(dict.__getitem__, section, whole))
        for key in keys:
            for value in (None, "x", 3, [], {}, 2.5, True, "gone"):
                changed = copy.deepcopy(whole)
                target = functools.reduce(dict.__getitem__, section, changed)
                if value == "gone":
                    del target[key]
                elif target[key] == value:
                    continue
                else:
                    target[key] = value
                path.write_text(json.dumps(changed))
                with pytest.raises(DsmError) as caught:
                    TokenizedDataset(prefix)
                assert "\n" not in str(caught.value), (section, key, value)


def test_a_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", tokenizer=TOKENIZER, recipe=RECIPE)
    path = Path(f"{prefix}.manifest.json")
    whole = path.read_bytes()
    content = json.loads(whole)
    for bit in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            unchanged = json.loads(damaged) == content  # white space
        except ValueError:
            unchanged = False
        if not unchanged:
            with pytest.raises(DsmError):
                TokenizedDataset(prefix)
    path.write_bytes(whole.replace(b"t.model", b"u.model"))
    with pytest.raises(DsmError, match="is damaged or was edited, its checksum differs"):
        TokenizedDataset(prefix)


@pytest.mark.parametrize("value", [1000, 0xFFFF])
def test_a_token_id_outside_the_vocabulary_names_file_and_document(tmp_path: Path, value: int):
    prefix = _write(tmp_path / "x")
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.seek(2 * 5)
        file.write(value.to_bytes(2, "little"))
    dataset = TokenizedDataset(prefix)
    assert dataset.document(0).tolist() == DOCUMENTS[0][0]
    message = rf"x\.bin: is damaged: document 1 has the token id {value}, expected 0 to 999"
    with pytest.raises(DsmError, match=message):
        dataset.document(1)


def test_a_missing_dataset_says_what_makes_one(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x")
    with pytest.raises(DsmError, match="no tokenized dataset there: dsm preprocess makes one"):
        TokenizedDataset(tmp_path / "y")
    for suffix in (".bin", ".idx"):
        with pytest.raises(DsmError, match=r"give the prefix without the ending, .*/x$"):
            TokenizedDataset(Path(f"{prefix}{suffix}"))
    for prefix in (Path(), Path("/"), Path(".."), Path("a\0b")):
        with pytest.raises(DsmError, match="a prefix ends with the name"):
            TokenizedDataset(prefix)


def test_a_folder_in_the_place_of_any_file_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    for suffix in (*DATA_SUFFIXES, ".manifest.json"):
        taken = tmp_path / f"x{suffix}"
        taken.mkdir()
        with pytest.raises(DsmError, match=rf"x{suffix}: a folder stands where"):
            _write(tmp_path / "x")
        assert _names(tmp_path) == [taken.name]
        taken.rmdir()


def test_a_folder_that_appears_meanwhile_leaves_no_file_published(tmp_path: Path) -> None:
    with (
        pytest.raises(DsmError, match=r"x\.bin: a folder stands where"),
        TokenizedDatasetWriter(tmp_path / "x", vocab_size=10) as writer,
    ):
        writer.add([1], [], id="", **ATTRIBUTES)
        (tmp_path / "x.bin").mkdir()
        writer.finish()
    assert _names(tmp_path) == ["x.bin"]


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_stays(tmp_path: Path):
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    for suffix in (*DATA_SUFFIXES, ".manifest.json"):
        (tmp_path / f".x{suffix}.{ended.pid}.tmp").touch()
    others = [f".x.bin.{os.getppid()}.tmp", f".y.bin.{ended.pid}.tmp", ".x.bin.tmp"]
    for name in others:
        (tmp_path / name).touch()
    _write(tmp_path / "x")
    assert {name for name in _names(tmp_path) if name.endswith(".tmp")} == set(others)


def test_a_vocabulary_without_tokens_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DsmError, match="at least one token, found 0"):
        TokenizedDatasetWriter(tmp_path / "x", vocab_size=0)
