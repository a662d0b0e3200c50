"""Megatron's .bin/.idx: the same bytes both ways, and no damaged file that is read in silence."""

import gc
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets import indexed_dataset as megatron

from dsm_engine.data.indexed_dataset import IndexedDataset, optimal_dtype, write_index
from dsm_engine.errors import DsmError

DOCUMENTS = [[1, 2, 3], [65498], [7, 0, 7, 0, 7], [5, 6]]


def _write(prefix: Path, documents: list[list[int]], dtype=np.uint16) -> Path:
    tokens = [np.asarray(document, dtype) for document in documents]
    Path(f"{prefix}.bin").write_bytes(b"".join(array.tobytes() for array in tokens))
    with Path(f"{prefix}.idx").open("wb") as file:
        write_index(file, [len(document) for document in documents], np.dtype(dtype))
    return prefix


def _write_with_megatron(prefix: Path, documents: list[list[int]], dtype) -> Path:
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def _contents(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(i).tolist() for i in range(dataset.num_documents)]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("documents", [DOCUMENTS, [[9]], []], ids=["four", "one", "none"])
def test_bytes_equal_those_of_megatrons_builder(tmp_path: Path, dtype, documents) -> None:
    ours = _write(tmp_path / "ours", documents, dtype)
    theirs = _write_with_megatron(tmp_path / "theirs", documents, dtype)
    for suffix in (".bin", ".idx"):
        assert Path(f"{ours}{suffix}").read_bytes() == Path(f"{theirs}{suffix}").read_bytes()


def test_megatron_reads_what_is_written_here(tmp_path: Path) -> None:
    dataset = megatron.IndexedDataset(str(_write(tmp_path / "x", DOCUMENTS)))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16])
def test_files_of_megatron_are_read_here(tmp_path: Path, dtype) -> None:
    documents = [[1, 2, 3], [100], [7, 0, 7, 0, 7]]
    prefix = _write_with_megatron(tmp_path / "x", documents, dtype)
    assert IndexedDataset(prefix).dtype == dtype
    assert _contents(prefix) == documents
    assert IndexedDataset(prefix).lengths.tolist() == [3, 1, 5]


def test_dtype_follows_megatrons_rule() -> None:
    for vocab_size in (1, 32000, 65499, 65500, 65536, 102400):
        assert optimal_dtype(vocab_size) == megatron.DType.optimal_dtype(vocab_size)


def test_a_view_of_a_temporary_dataset_stays_valid(tmp_path: Path) -> None:
    view = IndexedDataset(_write(tmp_path / "x", DOCUMENTS)).document(2)
    gc.collect()
    assert view.tolist() == DOCUMENTS[2]
    assert not view.flags.writeable


def test_lengths_are_aligned_int32(tmp_path: Path) -> None:
    lengths = IndexedDataset(_write(tmp_path / "x", DOCUMENTS)).lengths
    assert (lengths.dtype, lengths.flags.aligned, lengths.tolist()) == (
        np.int32,
        True,
        [3, 1, 5, 2],
    )


@pytest.mark.parametrize("document_idx", [-1, 4, 1 << 40])
def test_documents_out_of_range_are_rejected(tmp_path: Path, document_idx: int) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", DOCUMENTS))
    with pytest.raises(DsmError, match=f"has 4 documents, asked for document {document_idx}"):
        dataset.document(document_idx)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_rejected(tmp_path: Path, suffix: str) -> None:
    prefix = _write(tmp_path / "x", DOCUMENTS)
    Path(f"{prefix}{suffix}").unlink()
    with pytest.raises(DsmError, match=f"x{suffix}: cannot be read: No such file"):
        IndexedDataset(prefix)


def test_truncated_idx_is_rejected_at_open(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", DOCUMENTS)
    path = Path(f"{prefix}.idx")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DsmError, match="found"):
            IndexedDataset(prefix)


def test_bin_of_another_size_is_rejected_at_open(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", DOCUMENTS)
    path = Path(f"{prefix}.bin")
    whole = path.read_bytes()
    for content in [*(whole[:length] for length in range(len(whole))), whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(
            DsmError, match=rf"x\.bin: expected 22 bytes from .*x\.idx, found {len(content)}$"
        ):
            IndexedDataset(prefix)


def test_no_single_bit_flip_of_the_idx_returns_wrong_data(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", DOCUMENTS)
    path = Path(f"{prefix}.idx")
    whole = path.read_bytes()
    rejected = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert _contents(prefix) == DOCUMENTS, f"bit {bit}"
        except DsmError:
            rejected += 1
    # What is left is inside the document table, which is not read: one document is one sequence.
    assert rejected == 8 * len(whole) - 3 * 64


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (0, b"MMIDIDY", "expected the magic MMIDIDX"),
        (9, struct.pack("<Q", 2), "expected version 1, found 2"),
        (17, b"\x09", "expected a dtype code of 1 to 8, found 9"),
        (17, b"\x00", "expected a dtype code of 1 to 8, found 0"),
        (18, struct.pack("<Q", 5), "counts 5 sequences and 5 document ends: expected 134 bytes"),
        (18, struct.pack("<Q", 1 << 62), r"expected more than 2\^64 bytes"),
        (26, struct.pack("<Q", 1 << 63), r"expected more than 2\^64 bytes"),
        (34 + 12, struct.pack("<i", -2), "to be at least 0, found -2 and 18"),
        (34 + 16, struct.pack("<q", 2), "expected the first document at byte 0, found 2"),
        (34 + 48, struct.pack("<q", 1), "expected document ends from 0 to 4, found 1 to 4"),
    ],
)
def test_each_fault_of_the_header_has_its_message(tmp_path, offset, field, message) -> None:
    prefix = _write(tmp_path / "x", DOCUMENTS)
    path = Path(f"{prefix}.idx")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(field)] = field
    path.write_bytes(content)
    with pytest.raises(DsmError, match=rf"x\.idx: .*{message}"):
        IndexedDataset(prefix)


def test_documents_of_several_sequences_are_rejected(tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=np.int32)
    builder.add_document(torch.tensor([1, 2, 3]), [1, 2])
    builder.finalize(str(tmp_path / "x.idx"))
    with pytest.raises(DsmError, match="expected one sequence a document, found 2 sequences"):
        IndexedDataset(tmp_path / "x")


def test_modes_of_a_multimodal_index_are_ignored(tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(
        str(tmp_path / "x.bin"), dtype=np.int32, multimodal=True
    )
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document), mode=1)
        builder.end_document()
    builder.finalize(str(tmp_path / "x.idx"))
    assert _contents(tmp_path / "x") == DOCUMENTS
