"""Packs as fixed-shape batches, gathered from the mapped tokens in one call of the C++ core."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dsm_engine import _core
from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError

NO_LABEL = -100

NewArray = Callable[[tuple[int], np.dtype[Any]], NDArray[Any]]
"""Makes an array of a shape and dtype: np.empty, or a view of pinned memory."""


@dataclass(kw_only=True, eq=False, slots=True)
class PackedBatch:
    """Buffers for one pack and, once read, the pack; T is the capacity.

    What follows the last document is a document of its own, without supervision.
    """

    tokens: NDArray[Any]
    """[T], int64 or int32"""
    labels: NDArray[Any]
    """[T], the next token of the same document where it is supervised, else -100; as `tokens`."""
    loss_weights: NDArray[np.float32]
    """[T], 1 where there is a label, else 0."""
    position_ids: NDArray[Any]
    """[T], from 0 in each document; as `tokens`."""
    document_ids: NDArray[np.int32]
    """[T], index of the document within the pack."""
    cu_seqlens: NDArray[np.int32]
    """[max_documents + 2], where documents end, padded by repeating T: one shape for all packs."""
    max_seqlen: int = 0
    """Slots of the longest document, the tail padding included."""
    num_documents: int = 0
    """With the tail padding."""
    num_supervised: int = 0
    """Positions with a label."""
    packs: PackIndex | None = field(default=None, repr=False)
    """The index that was read from, None before."""
    pack_idx: int = -1
    """The pack of it that the buffers hold."""
    core: _core.PackBuffers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.core = _core.PackBuffers(
            self.tokens,
            self.labels,
            self.loss_weights,
            self.position_ids,
            self.document_ids,
            self.cu_seqlens,
        )

    @property
    def document_idx(self) -> NDArray[Any]:
        """[k], the documents' numbers in the dataset, a view; the tail padding has none."""
        assert self.packs is not None, "nothing was read yet"
        return self.packs.pack(self.pack_idx)


class PackReader:
    """Reads packs of a dataset. Raises DsmError where the index is not of this dataset."""

    def __init__(self, dataset: TokenizedDataset, packs: PackIndex, *, pad_id: int) -> None:
        if not packs.matches(dataset.lengths):
            raise DsmError(
                f"{dataset.prefix}: the pack index was built for other documents"
                f" ({packs.num_documents} of them, not {dataset.num_documents}): build it again"
            )
        self.dataset = dataset
        self.packs = packs
        self.max_documents = packs.max_documents()
        self._core = _core.PackGatherer(
            dataset.indexed.core,
            dataset.span_table.offsets,
            dataset.span_table.spans,
            *packs.arrays(),
            **packs.layout(),
            vocab_size=dataset.vocab_size,
            pad_id=pad_id,
        )

    def allocate(
        self, *, index_dtype: DTypeLike = np.int64, new_array: NewArray = np.empty
    ) -> PackedBatch:
        """Buffers for a pack; tokens, labels and positions are `index_dtype`, int64 or int32."""
        shape, index = (self.packs.capacity,), np.dtype(index_dtype)
        return PackedBatch(
            tokens=new_array(shape, index),
            labels=new_array(shape, index),
            loss_weights=new_array(shape, np.dtype(np.float32)),
            position_ids=new_array(shape, index),
            document_ids=new_array(shape, np.dtype(np.int32)),
            cu_seqlens=new_array((self.max_documents + 2,), np.dtype(np.int32)),
        )

    def read(self, pack_idx: int, *, out: PackedBatch | None = None) -> PackedBatch:
        """Gathers one pack, into `out` where it is given, and returns the batch.

        Raises DsmError where there is no such pack or the data is damaged there; the buffers then
        hold nothing of use.
        """
        batch = self.allocate() if out is None else out
        counts = self._core.gather(pack_idx, batch.core)
        batch.max_seqlen, batch.num_documents, batch.num_supervised = counts
        batch.packs, batch.pack_idx = self.packs, pack_idx
        return batch

    def read_batch(
        self,
        pack_indices: Sequence[int] | NDArray[np.int64],
        *,
        out: Sequence[PackedBatch] | None = None,
        threads: int = 1,
    ) -> list[PackedBatch]:
        """Gathers several packs in one call on `threads` threads, without the GIL.

        Raises DsmError as `read` does, after all threads have stopped.
        """
        given = np.asarray(pack_indices)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise DsmError(f"packs are one row of integers, found {given.dtype} {given.shape}")
        indices = np.ascontiguousarray(given, np.int64)
        batches = [self.allocate() for _ in indices] if out is None else list(out)
        if len({id(batch) for batch in batches}) < len(batches):
            raise ValueError("the buffers of a batch are given twice")
        counts = self._core.gather_batch(indices, [batch.core for batch in batches], threads)
        for pack_idx, batch, found in zip(indices.tolist(), batches, counts.tolist(), strict=True):
            batch.max_seqlen, batch.num_documents, batch.num_supervised = found
            batch.packs, batch.pack_idx = self.packs, pack_idx
        return batches

    def prefetch(self, pack_idx: int) -> None:
        """Asks the memory for a pack that is read soon, and does not wait for it."""
        self._core.prefetch(pack_idx)
