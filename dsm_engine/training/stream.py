"""The stream of packs: which packs a step trains on, and this rank's share as tensors.

Everything here follows from (dataset, pack index, seed, step): no state to save, and the same
stream whatever the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsm_engine.data.pack_index import PackIndex, deal_packs
from dsm_engine.data.pack_order import PackOrder
from dsm_engine.data.packed_batch import PackedBatch, PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.model.attention.packs import PackedSequences, packed_sequences
from dsm_engine.parallel.context import ParallelContext


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One pack on the device, or this rank's share of its tokens under context parallelism; T is
    the capacity of a pack over CP."""

    tokens: Tensor  # int64 [1, T]
    labels: Tensor  # int64 [1, T], -100 where there is none
    loss_weights: Tensor  # fp32 [1, T]
    position_ids: Tensor  # int64 [1, T]
    packed_seq_params: PackedSequences


class PackStream:
    """Packs in training order, dealt to data-parallel ranks."""

    def __init__(
        self,
        dataset: TokenizedDataset,
        packs: PackIndex,
        *,
        pad_id: int,
        seed: int,
        context: ParallelContext,
    ) -> None:
        self._reader = PackReader(dataset, packs, pad_id=pad_id)
        self._packs = packs
        self._order = PackOrder(packs.num_packs, seed)
        self._context = context
        totals = packs.totals(dataset.lengths)
        self._tokens_in_pack = totals.tokens
        self._costs = totals.costs(packs.cost) if packs.strategy == "balanced" else None

    @property
    def num_packs(self) -> int:
        """Packs of one epoch."""
        return self._packs.num_packs

    def packs_of_step(self, step: int, global_batch_size: int) -> list[int]:
        """The packs all ranks together train on in `step`, counted from 0."""
        first = step * global_batch_size
        return [self._order.pack_at(first + i) for i in range(global_batch_size)]

    def documents_of(self, pack_idx: int) -> list[int]:
        """Dataset ids of the documents in a pack."""
        return [int(document) for document in self._packs.pack(pack_idx)]

    @property
    def reader(self) -> PackReader:
        """What packs are read with."""
        return self._reader

    def read_from(self, reader: PackReader) -> None:
        """Takes packs from another reader of the same pack index."""
        self._reader = reader

    def packs_of_rank(self, pack_indices: list[int]) -> list[int]:
        """This data-parallel rank's share of the packs, in the order of its micro-batches."""
        return self._share(pack_indices)

    def num_tokens(self, pack_indices: list[int]) -> int:
        """Tokens of documents in these packs, padding left out."""
        return int(self._tokens_in_pack[pack_indices].sum())

    def micro_batches(self, pack_indices: list[int]) -> Iterator[MicroBatch]:
        """This data-parallel rank's share of the packs, one a micro-batch.

        Ranks take turns; packs of the strategy `balanced` are dealt so that ranks cost the same.
        """
        for pack_idx in self._share(pack_indices):
            yield self.micro_batch(pack_idx)

    def micro_batch(self, pack_idx: int) -> MicroBatch:
        """One pack, whosever turn it is."""
        batch = to_device(self._reader.read(pack_idx), self._context.device)
        return share_of_rank(batch, self._context)

    def _share(self, pack_indices: list[int]) -> list[int]:
        rank, ranks = self._context.dp_rank, self._context.dp_size
        if self._costs is not None and len(pack_indices) % ranks == 0:
            dealt = deal_packs(self._costs[pack_indices], ranks)
            return [pack_indices[i] for i in dealt[rank::ranks].tolist()]
        return pack_indices[rank::ranks]


def to_device(batch: PackedBatch, device: torch.device) -> MicroBatch:
    """The pack's arrays as tensors with a batch dimension of 1."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).unsqueeze(0).to(device, non_blocking=True)

    cu_seqlens = batch.cu_seqlens[: batch.num_documents + 1]
    return MicroBatch(
        tokens=tensor(batch.tokens),
        labels=tensor(batch.labels),
        loss_weights=tensor(batch.loss_weights),
        position_ids=tensor(batch.position_ids),
        packed_seq_params=packed_sequences(
            torch.from_numpy(cu_seqlens).to(device, non_blocking=True),
            tuple(int(length) for length in np.diff(cu_seqlens)),
            batch.max_seqlen,
        ),
    )


def share_of_rank(batch: MicroBatch, context: ParallelContext) -> MicroBatch:
    """The tokens of a whole pack that this context-parallel rank computes; all, without CP.

    Of each document chunks r and 2 * CP - 1 - r of 2 * CP, as `ops.context_parallel_split` deals
    them; documents take a multiple of 2 * CP slots. Where documents lie stays that of the whole
    pack.
    """
    if context.cp_size == 1:
        return batch
    packed = batch.packed_seq_params
    mine = packed.slots_of_ranks(context.cp_size)[context.cp_rank]
    return MicroBatch(
        tokens=batch.tokens[:, mine],
        labels=batch.labels[:, mine],
        loss_weights=batch.loss_weights[:, mine],
        position_ids=batch.position_ids[:, mine],
        packed_seq_params=packed,
    )
