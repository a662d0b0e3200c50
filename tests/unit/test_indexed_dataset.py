"""Megatron's .bin/.idx: the same bytes both ways, and no damaged file that is read in silence."""

import gc
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets import indexed_dataset as megatron

from dsm_engine.data.indexed_dataset import IndexedDataset, optimal_dtype, write_index
from dsm_engine.errors import DsmError

DOCUMENTS = [[1, 2, 3], [65498], [7, 0, 7, 0, 7], [5, 6]]


def _write(prefix: Path, documents, dtype=np.uint16) -> Path:
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
    document_table = range(8 * (34 + 12 * 4 + 8), 8 * (34 + 12 * 4 + 8 + 8 * 3))
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            contents = _contents(prefix)
        except DsmError:
            continue
        # What remains is another division into documents, with an empty one: the sequences hold.
        assert bit in document_table, f"bit {bit}"
        assert list(chain(*contents)) == list(chain(*DOCUMENTS)), f"bit {bit}"
        assert [] in contents, f"bit {bit}"


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
        (34 + 16, struct.pack("<q", 2), "expected the first sequence at byte 0, found 2"),
        (34 + 48, struct.pack("<q", 1), "expected document ends from 0 to 4, found 1 to 4"),
        (34 + 80, struct.pack("<q", 3), "expected document ends from 0 to 4, found 0 to 3"),
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


def _write_raw(prefix: Path, lengths: list[int], ends: list[int], bin_bytes: bytes = b"") -> Path:
    """An .idx of int32 tokens with any tables, and a .bin."""
    pointers = np.cumsum([0, *lengths[:-1]]) * 4 if lengths else np.empty(0)
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 4, len(lengths), len(ends))
        + np.array(lengths, np.int32).tobytes()
        + pointers.astype(np.int64).tobytes()
        + np.array(ends, np.int64).tobytes()
    )
    Path(f"{prefix}.bin").write_bytes(bin_bytes)
    return prefix


def test_a_document_of_several_sequences_is_one_view(tmp_path: Path) -> None:
    tokens = np.arange(10, dtype=np.int32)
    prefix = _write_raw(tmp_path / "x", [1, 2, 0, 3, 4], [0, 2, 2, 5], tokens.tobytes())
    dataset = IndexedDataset(prefix)
    assert (dataset.num_documents, dataset.num_sequences) == (3, 5)
    assert _contents(prefix) == [[0, 1, 2], [], [3, 4, 5, 6, 7, 8, 9]]
    assert [dataset.sequence(i).tolist() for i in range(5)] == [
        [0],
        [1, 2],
        [],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]
    assert dataset.lengths.tolist() == [3, 0, 7]
    dataset.check_tables()
    with pytest.raises(DsmError, match="has 5 sequences, asked for sequence 5"):
        dataset.sequence(5)


@pytest.mark.parametrize("ends", [[0, 2, 1, 3], [0, -1, 2, 3], [0, 4, 2, 3], [0, 1 << 62, 2, 3]])
def test_document_ends_that_do_not_rise_are_rejected_at_access(tmp_path: Path, ends) -> None:
    prefix = _write_raw(tmp_path / "x", [1, 1, 1], ends, bytes(12))
    dataset = IndexedDataset(prefix)
    message = r"x\.idx: is damaged: document \d: expected document ends that rise from 0 to 3"
    for read in (lambda: _contents(prefix), dataset.check_tables, lambda: dataset.lengths):
        with pytest.raises(DsmError, match=message):
            read()


def test_a_table_without_document_ends_is_rejected_at_open(tmp_path: Path) -> None:
    with pytest.raises(DsmError, match=r"x\.idx: expected at least 1 document end, found 0"):
        IndexedDataset(_write_raw(tmp_path / "x", [], []))


def test_sequences_that_are_not_end_to_end_are_found_inside_a_document(tmp_path: Path) -> None:
    prefix = _write_raw(tmp_path / "x", [2, 2, 2], [0, 3], bytes(24))
    path = Path(f"{prefix}.idx")
    content = bytearray(path.read_bytes())
    content[34 + 12 + 8 : 34 + 12 + 16] = struct.pack("<q", 12)  # sequence 1, should begin at 8
    path.write_bytes(content)
    dataset = IndexedDataset(prefix)
    with pytest.raises(DsmError, match=r"x\.idx: is damaged: document 0, sequences 0 to 3"):
        dataset.document(0)
    with pytest.raises(DsmError, match=r"x\.idx: is damaged: sequence 0, sequences 0 to 1"):
        dataset.check_tables()
    assert dataset.sequence(2).tolist() == [0, 0]


def test_a_document_too_long_for_int32_is_read_but_has_no_int32_length(tmp_path: Path) -> None:
    prefix = _write_raw(tmp_path / "x", [(1 << 31) - 1, 1], [0, 2])
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(4 << 31)  # sparse
    dataset = IndexedDataset(prefix)
    assert len(dataset.document(0)) == 1 << 31
    with pytest.raises(
        DsmError, match=r"document 0: expected at most 2\^31 - 1 tokens, found 2147"
    ):
        _ = dataset.lengths


def test_modes_of_a_multimodal_index_are_ignored_with_a_word(tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(
        str(tmp_path / "x.bin"), dtype=np.int32, multimodal=True
    )
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document), mode=1)
        builder.end_document()
    builder.finalize(str(tmp_path / "x.idx"))
    with pytest.warns(UserWarning, match=r"x\.idx: is of a multimodal dataset: the modes"):
        dataset = IndexedDataset(tmp_path / "x")
    assert dataset.has_modes
    assert [dataset.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert not IndexedDataset(_write(tmp_path / "y", DOCUMENTS)).has_modes


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_many_documents_are_copied_in_one_call(tmp_path: Path, dtype) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", [*DOCUMENTS, []], dtype))
    indices = [3, 0, 4, 0, 2, 1] * 20  # more than are fetched ahead
    tokens, offsets = dataset.documents(indices)
    assert (tokens.dtype, offsets.dtype) == (dtype, np.int64)
    assert np.split(tokens, offsets[1:-1])[4].tolist() == DOCUMENTS[2]
    expected = [dataset.document(i) for i in indices]
    assert tokens.tolist() == np.concatenate(expected).tolist()
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    tokens[:] = 0  # a copy, the caller's
    assert _contents(tmp_path / "x")[0] == DOCUMENTS[0]


def test_no_documents_are_no_tokens(tmp_path: Path) -> None:
    tokens, offsets = IndexedDataset(_write(tmp_path / "x", DOCUMENTS)).documents([])
    assert (tokens.tolist(), offsets.tolist()) == ([], [0])


@pytest.mark.parametrize("wrong", [-1, 4, 1 << 40])
def test_one_document_out_of_range_among_many_is_rejected(tmp_path: Path, wrong: int) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", DOCUMENTS))
    for indices in ([0, wrong], [wrong], [0] * 30 + [wrong]):
        with pytest.raises(DsmError, match=f"has 4 documents, asked for document {wrong}"):
            dataset.documents(indices)


@pytest.mark.parametrize("wrong", [[0.5], [[0]], ["a"]])
def test_document_numbers_that_are_no_row_of_integers_are_rejected(tmp_path: Path, wrong) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", DOCUMENTS))
    with pytest.raises(DsmError, match="expected document numbers as one row of integers"):
        dataset.documents(wrong)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.int8])
def test_a_token_id_outside_the_vocabulary_is_found(tmp_path: Path, dtype) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", [[1, 2], [3, 99, 4]], dtype))
    dataset.check_token_ids(100)
    with pytest.raises(
        DsmError, match=r"x\.bin: .*document 1 has the token id 99, expected 0 to 98"
    ):
        dataset.check_token_ids(99)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_a_negative_token_id_is_outside_every_vocabulary(tmp_path: Path, dtype) -> None:
    dataset = IndexedDataset(_write(tmp_path / "x", [[1, -2]], dtype))
    with pytest.raises(DsmError, match="document 0 has the token id -2, expected 0 to"):
        dataset.check_token_ids(1 << 40)
