"""What holds for dataset files: Megatron's round trip both ways, and no damage that passes."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset as megatron

from dsm_engine.data.checksums import HashedFile, find_damaged_chunk
from dsm_engine.data.indexed_dataset import IndexedDataset, write_index
from dsm_engine.data.sidecars import AttributeTable, SpanTable
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.errors import DsmError

DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.float32, np.uint16]
ATTRIBUTES = {"source": "s", "language": "zh", "format": "cot", "topic": "代数"}

Documents = list[list[np.ndarray[Any, Any]]]


@st.composite
def _documents(draw: Any, *, one_sequence: bool = False) -> tuple[Any, Documents]:
    """A dtype, and documents of sequences of tokens; both may be empty."""
    dtype = draw(st.sampled_from(DTYPES))
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    sequences = st.integers(1, 1) if one_sequence else st.integers(0, 4)
    counts = draw(st.lists(sequences, max_size=8))
    lengths = [draw(st.lists(st.integers(0, 20), min_size=k, max_size=k)) for k in counts]
    low, high = (-1000, 1000) if info.dtype.kind == "f" else (info.min, info.max)

    def tokens(length: int) -> np.ndarray[Any, Any]:
        if info.dtype.kind == "f":
            return rng.uniform(low, high, length).astype(dtype)
        return rng.integers(low, high, length, dtype, endpoint=True)

    return dtype, [[tokens(length) for length in document] for document in lengths]


def _flat(document: list[np.ndarray[Any, Any]], dtype: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.empty(0, dtype), *document])


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _torch(tokens: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int32) if tokens.dtype == np.uint16 else tokens.copy())


@given(given_documents=_documents())
def test_what_megatron_writes_is_read_here(given_documents: tuple[Any, Documents]) -> None:
    dtype, documents = given_documents
    with _folder() as folder:
        builder = megatron.IndexedDatasetBuilder(str(folder / "x.bin"), dtype=dtype)
        for document in documents:
            for sequence in document:
                builder.add_item(_torch(sequence))
            builder.end_document()
        builder.finalize(str(folder / "x.idx"))

        dataset = IndexedDataset(folder / "x")
        dataset.check_tables()
        expected = [_flat(document, dtype) for document in documents]
        sequences = [sequence for document in documents for sequence in document]
        assert dataset.dtype == dtype
        assert (dataset.num_documents, dataset.num_sequences) == (len(expected), len(sequences))
        for i, tokens in enumerate(expected):
            np.testing.assert_array_equal(dataset.document(i), tokens)
        for i, tokens in enumerate(sequences):
            np.testing.assert_array_equal(dataset.sequence(i), tokens)
        assert dataset.lengths.tolist() == [len(tokens) for tokens in expected]
        copied, offsets = dataset.documents(range(len(expected)))
        np.testing.assert_array_equal(copied, _flat(expected, dtype))
        assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()


@given(given_documents=_documents(one_sequence=True))
def test_what_is_written_here_is_read_by_megatron(given_documents: tuple[Any, Documents]) -> None:
    dtype, documents = given_documents
    documents = [*documents, [np.ones(1, dtype)]]  # Megatron cannot map an empty .bin
    with _folder() as folder:
        expected = [_flat(document, dtype) for document in documents]
        (folder / "x.bin").write_bytes(b"".join(tokens.tobytes() for tokens in expected))
        with (folder / "x.idx").open("wb") as file:
            write_index(file, [len(tokens) for tokens in expected], np.dtype(dtype))
        dataset = megatron.IndexedDataset(str(folder / "x"))
        assert dataset.index.dtype == dtype
        assert dataset.document_indices.tolist() == list(range(len(expected) + 1))
        for i, tokens in enumerate(expected):
            np.testing.assert_array_equal(dataset[i], tokens)


@given(
    parts=st.lists(st.binary(max_size=70), max_size=12),
    chunk_bytes=st.integers(1, 64),
    flip=st.integers(0, 1 << 20),
)
def test_chunk_checksums_do_not_depend_on_how_a_file_is_written(parts, chunk_bytes, flip) -> None:
    content = b"".join(parts)
    with _folder() as folder:
        path = folder / "x"
        with path.open("wb") as file:
            hashed = HashedFile(file, chunk_bytes=chunk_bytes)
            for part in parts:
                hashed.write(part)
        description = hashed.describe()
        chunks = [content[i : i + chunk_bytes] for i in range(0, len(content), chunk_bytes)]
        assert description == {
            "bytes": len(content),
            "xxh3": xxhash.xxh3_64_hexdigest(content),
            "chunks": [xxhash.xxh3_64_hexdigest(chunk) for chunk in chunks],
        }
        known = {"num_bytes": len(content), "chunk_bytes": chunk_bytes}
        assert find_damaged_chunk(path, chunks=description["chunks"], **known) is None
        if content:
            byte = flip % len(content)
            path.write_bytes(_flipped(content, 8 * byte))
            damage = find_damaged_chunk(path, chunks=description["chunks"], **known)
            assert damage is not None
            assert damage.begin <= byte < damage.end <= len(content)


def _flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenized dataset of three documents."""
    prefix = tmp_path_factory.mktemp("small") / "x"
    with TokenizedDatasetWriter(prefix, vocab_size=100) as writer:
        writer.add([1, 2, 3], [(1, 2), (2, 3)], id="a", **ATTRIBUTES)
        writer.add([4], [], id="", **ATTRIBUTES | {"topic": ""})
        writer.add([5, 6], [(0, 2)], id="题", **ATTRIBUTES)
        writer.finish()
    return prefix


def _contents(prefix: Path) -> list[Any]:
    dataset = TokenizedDataset(prefix)
    return [
        (dataset.document(i).tolist(), dataset.spans(i).tolist(), dataset.attributes(i))
        for i in range(dataset.num_documents)
    ]


@contextmanager
def _restored(path: Path) -> Iterator[bytes]:
    whole = path.read_bytes()
    try:
        yield whole
    finally:
        path.write_bytes(whole)


def _is_refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except DsmError as error:
        assert "\n" not in str(error)
        return True
    return False


SUFFIXES = [".idx", ".bin", ".spans", ".attributes", ".manifest.json"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_is_rejected_at_open(small: Path, suffix: str) -> None:
    path = Path(f"{small}{suffix}")
    with _restored(path) as whole:
        content = whole.rstrip() if suffix == ".manifest.json" else whole  # white space is no data
        for size in range(len(content)):
            path.write_bytes(whole[:size])
            assert _is_refused(lambda: TokenizedDataset(small)), f"{size} bytes"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_bit_is_rejected_at_open_at_access_or_by_verify(small, suffix) -> None:
    path = Path(f"{small}{suffix}")
    expected = _contents(small)
    with _restored(path) as whole:
        for bit in range(8 * len(whole)):
            path.write_bytes(_flipped(whole, bit))
            _is_refused(lambda: _contents(small))  # whatever it reads, it does not crash
            if not _is_refused(lambda: TokenizedDataset(small).verify()):
                # Only white space of the manifest is not data.
                assert suffix == ".manifest.json" and whole[bit // 8 : bit // 8 + 1].isspace()
                assert _contents(small) == expected


READERS: dict[str, tuple[type, Callable[[Any, int], object]]] = {
    ".spans": (SpanTable, lambda table, i: table.document(i).tolist()),
    ".attributes": (AttributeTable, lambda table, i: table.document(i)),
}


@pytest.mark.parametrize("suffix", READERS)
def test_every_truncation_of_a_sidecar_alone_is_rejected_at_open(small: Path, suffix: str) -> None:
    path = Path(f"{small}{suffix}")
    table, _ = READERS[suffix]
    with _restored(path) as whole:
        for content in [*(whole[:size] for size in range(len(whole))), whole + b"\0"]:
            path.write_bytes(content)
            assert _is_refused(lambda: table(path)), f"{len(content)} bytes"


@pytest.mark.parametrize("suffix", READERS)
def test_views_outlive_a_temporary_table(small: Path, suffix: str) -> None:
    path = Path(f"{small}{suffix}")
    if suffix == ".spans":
        views = [SpanTable(path).document(0), SpanTable(path).spans, SpanTable(path).offsets]
        expected = [[[1, 2], [2, 3]], [[1, 2], [2, 3], [0, 2]], [0, 2, 2, 3]]
    else:
        views = [AttributeTable(path).column("topic")[1], AttributeTable(path).column("source")[1]]
        expected = [[0, 1, 0], [0, 0, 0]]
    gc.collect()
    assert [view.tolist() for view in views] == expected
    assert not any(view.flags.writeable for view in views)


def test_views_outlive_a_temporary_dataset(small: Path) -> None:
    views = [IndexedDataset(small).document(i) for i in range(3)]
    views += [IndexedDataset(small).sequence(0), TokenizedDataset(small).document(2)]
    gc.collect()
    assert [view.tolist() for view in views] == [[1, 2, 3], [4], [5, 6], [1, 2, 3], [5, 6]]
    assert not any(view.flags.writeable for view in views)
