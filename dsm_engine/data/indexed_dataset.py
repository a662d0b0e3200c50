"""Megatron's .bin/.idx: token ids of many documents, end to end, with a table of where each lies.

Files written here are read by megatron.core's IndexedDataset and the reverse; one document is one
sequence. docs/formats.md has the byte tables.
"""

import functools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsm_engine import _core

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_VERSION = 1
_DTYPE_CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}


class BinaryWriter(Protocol):
    """What data files are written to."""

    def write(self, data: Any, /) -> object: ...


class IndexedDataset:
    """PREFIX.bin and PREFIX.idx, memory-mapped and read-only.

    Opening costs O(1) and checks magic, version, dtype and the sizes of both files. Raises
    DsmError where a file is missing or damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.core = _core.IndexedDataset(prefix)
        self.num_documents = self.core.num_documents

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored token ids."""
        return self.core.dtype

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, [num_documents]; an aligned copy made on first use."""
        lengths = self.core.lengths()
        lengths.flags.writeable = False
        return lengths

    def document(self, document_idx: int) -> NDArray[Any]:
        """The document's token ids, [length]: a read-only view that keeps the mapping alive.

        Raises DsmError where there is no such document or the index is damaged there.
        """
        return self.core.document(document_idx)

    def __len__(self) -> int:
        return self.num_documents


def optimal_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where Megatron's DType.optimal_dtype says so for this vocabulary, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


def write_index(file: BinaryWriter, lengths: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Writes the .idx of documents that stand end to end in the .bin, one sequence each."""
    sizes = np.asarray(lengths, dtype=np.int32)
    pointers = np.zeros(len(sizes), dtype=np.int64)
    np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
    pointers *= dtype.itemsize
    file.write(_INDEX_MAGIC)
    file.write(struct.pack("<QB", _INDEX_VERSION, _DTYPE_CODES[dtype]))
    file.write(struct.pack("<QQ", len(sizes), len(sizes) + 1))
    file.write(sizes.data)
    file.write(pointers.data)
    file.write(np.arange(len(sizes) + 1, dtype=np.int64).data)
