"""Megatron's .bin/.idx: token ids of many documents, end to end, with a table of where each lies.

Files written here are read by megatron.core's IndexedDataset and the reverse. One document is one
sequence where it is written here; documents of several sequences are read too. docs/formats.md has
the byte tables.
"""

import functools
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsm_engine import _core
from dsm_engine.errors import DsmError

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_VERSION = 1
_DTYPE_CODES = {
    np.dtype(dtype): code
    for code, dtype in enumerate(
        ("uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16"), start=1
    )
}


class BinaryWriter(Protocol):
    """What data files are written to."""

    def write(self, data: Any, /) -> object: ...


class IndexedDataset:
    """PREFIX.bin and PREFIX.idx, memory-mapped and read-only.

    Opening costs O(1) and checks magic, version, dtype and the sizes of both files. The modes of a
    multimodal dataset are ignored, with a warning. Raises DsmError where a file is missing or
    damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.core = _core.IndexedDataset(prefix)
        self.num_documents = self.core.num_documents
        if self.core.has_modes:
            warnings.warn(
                f"{prefix}.idx: is of a multimodal dataset: the modes of its sequences are ignored",
                stacklevel=2,
            )

    @property
    def num_sequences(self) -> int:
        return self.core.num_sequences

    @property
    def has_modes(self) -> bool:
        """Whether the index names a mode for each sequence. Nothing here reads them."""
        return self.core.has_modes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored token ids."""
        return self.core.dtype

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, [num_documents]; an aligned copy made on first use.

        Raises DsmError where the index is damaged or a document has more than 2^31 - 1 tokens.
        """
        lengths = self.core.lengths()
        lengths.flags.writeable = False
        return lengths

    def document(self, document_idx: int) -> NDArray[Any]:
        """The document's token ids, [length]: a read-only view that keeps the mapping alive.

        Raises DsmError where there is no such document or the index is damaged there.
        """
        return self.core.document(document_idx)

    def documents(
        self, document_idx: Sequence[int] | NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Copies of k documents: token ids, end to end, [total], and where each begins, [k + 1].

        One call of the C++ core without the GIL. Raises DsmError where one of them does not exist
        or the index is damaged there.
        """
        indices = np.asarray(document_idx)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise DsmError(
                f"{self.prefix}: expected document numbers as one row of integers,"
                f" found {indices.ndim} dimensions of {indices.dtype}"
            )
        return self.core.documents(np.ascontiguousarray(indices, dtype=np.int64))

    def sequence(self, sequence_idx: int) -> NDArray[Any]:
        """As `document`, for one of the `num_sequences` sequences that documents are made of."""
        return self.core.sequence(sequence_idx)

    def documents_in(self, begin: int, end: int) -> range:
        """The documents with tokens in the bytes [begin, end) of the .bin."""
        ends = np.cumsum(self.core.lengths(), dtype=np.int64) * self.dtype.itemsize
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end - 1, side="right"))
        return range(first, min(last + 1, self.num_documents))

    def check_tables(self) -> None:
        """Checks every entry of the index; raises DsmError that says where the first damage is."""
        self.core.check_tables()

    def check_token_ids(self, vocab_size: int) -> None:
        """Reads all tokens; raises DsmError that names a document with an id >= vocab_size."""
        assert vocab_size >= 1
        self.core.check_token_ids(vocab_size)

    def __len__(self) -> int:
        return self.num_documents


def optimal_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where Megatron's DType.optimal_dtype says so for this vocabulary, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


def write_index(
    file: BinaryWriter,
    lengths: Sequence[int] | NDArray[Any],
    dtype: np.dtype[Any],
    *,
    document_ends: NDArray[np.int64] | None = None,
) -> None:
    """Writes the .idx of sequences that stand end to end in the .bin, [num_sequences] lengths.

    `document_ends`, [num_documents], says how many sequences there are up to the end of each
    document; without it every sequence is a document.
    """
    sizes = np.asarray(lengths, dtype=np.int32)
    if document_ends is None:
        document_ends = np.arange(1, len(sizes) + 1, dtype=np.int64)
    pointers = np.zeros(len(sizes), dtype=np.int64)
    np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
    pointers *= dtype.itemsize
    file.write(_INDEX_MAGIC)
    file.write(struct.pack("<QB", _INDEX_VERSION, _DTYPE_CODES[dtype]))
    file.write(struct.pack("<QQ", len(sizes), len(document_ends) + 1))
    file.write(sizes.data)
    file.write(pointers.data)
    file.write(np.zeros(1, dtype=np.int64).data)
    file.write(document_ends.data)
