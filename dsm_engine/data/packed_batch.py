"""Packs as fixed-shape batches, gathered from the mapped tokens in one call of the C++ core."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsm_engine import _core
from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError

NO_LABEL = -100


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackedBatch:
    """One pack; T is the capacity. What follows the last document is a document of its own."""

    tokens: NDArray[np.int64]
    """[T]"""
    labels: NDArray[np.int64]
    """[T], the next token of the same document where it is supervised, else -100."""
    loss_weights: NDArray[np.float32]
    """[T], 1 where there is a label, else 0."""
    position_ids: NDArray[np.int64]
    """[T], from 0 in each document."""
    document_ids: NDArray[np.int32]
    """[T], index of the document within the pack."""
    cu_seqlens: NDArray[np.int32]
    """[max_documents + 2], where documents end, padded by repeating T: one shape for all packs."""
    max_seqlen: int
    """Tokens of the longest document, the tail padding included."""
    num_documents: int
    """With the tail padding."""
    num_supervised: int
    """Positions with a label."""
    document_idx: NDArray[np.int64]
    """[k], the documents' numbers in the dataset; the tail padding has none."""


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
            packs.offsets,
            packs.documents,
            dataset.vocab_size,
            pad_id,
        )

    def read(self, pack_idx: int, *, out: PackedBatch | None = None) -> PackedBatch:
        """Gathers one pack, into the arrays of `out` where it is given (a batch read before).

        Raises DsmError where there is no such pack or the data is damaged there.
        """
        capacity = self.packs.capacity
        arrays = (
            _new_arrays(capacity, self.max_documents)
            if out is None
            else (
                out.tokens,
                out.labels,
                out.loss_weights,
                out.position_ids,
                out.document_ids,
                out.cu_seqlens,
            )
        )
        assert len(arrays[0]) == capacity, "`out` is a batch of another capacity"
        max_seqlen, num_documents, num_supervised = self._core.gather(pack_idx, *arrays)
        tokens, labels, loss_weights, position_ids, document_ids, cu_seqlens = arrays
        return PackedBatch(
            tokens=tokens,
            labels=labels,
            loss_weights=loss_weights,
            position_ids=position_ids,
            document_ids=document_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            num_documents=num_documents,
            num_supervised=num_supervised,
            document_idx=self.packs.pack(pack_idx).astype(np.int64),
        )


def _new_arrays(
    capacity: int, max_documents: int
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float32],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int32],
]:
    return (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.float32),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int32),
        np.empty(max_documents + 2, np.int32),
    )
