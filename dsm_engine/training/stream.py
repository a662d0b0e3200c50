"""The stream of packs: which packs a step trains on, and this rank's share as tensors.

Everything here follows from (dataset, pack index, seed, step): no state to save, and the same
stream whatever the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dsm_engine.data.pack_index import PackIndex, deal_packs
from dsm_engine.data.pack_order import PackOrder
from dsm_engine.data.packed_batch import PackedBatch, PackReader
from dsm_engine.data.prefetch import PackPrefetcher
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.model.attention.packs import PackedSequences, packed_sequences
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.config import LossWeighting
from dsm_engine.training.slices import SliceTable
from dsm_engine.training.weighting import PackWeights, StepWeights


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One pack on the device, or this rank's share of its tokens under context parallelism; T is
    the capacity of a pack over CP."""

    tokens: Tensor  # int64 [1, T]
    labels: Tensor  # int64 [1, T], -100 where there is none
    loss_weights: Tensor  # fp32 [1, T]
    position_ids: Tensor  # int64 [1, T]
    packed_seq_params: PackedSequences
    divisor: Tensor | None = None
    """int32 []: this share of what the loss of a step is divided by; None: the number of supervised
    tokens."""
    slice_ids: Tensor | None = None
    """int32 [documents, attributes], -1 for none; None where losses by slice are not asked for."""
    num_slices: int = 0


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
        weighting: LossWeighting = "token",
        slices: SliceTable | None = None,
    ) -> None:
        self._weighting: LossWeighting = weighting
        self._slices = slices
        self._ahead: PackPrefetcher | None = None
        self._reader = PackReader(dataset, packs, pad_id=pad_id)
        self._packs = packs
        self._order = PackOrder(packs.num_packs, seed)
        self._context = context
        totals = packs.totals(dataset.lengths)
        self._totals = totals
        self._costs = totals.costs(packs.cost) if packs.strategy == "balanced" else None

    @property
    def num_packs(self) -> int:
        """Packs of one epoch."""
        return self._packs.num_packs

    @property
    def num_slices(self) -> int:
        """Slices that losses are summed by."""
        return 0 if self._slices is None else len(self._slices.names)

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
        self.close()
        self._reader = reader

    def packs_of_rank(self, pack_indices: list[int]) -> list[int]:
        """This data-parallel rank's share of the packs, in the order of its micro-batches."""
        return [pack_indices[place] for place in self._share(pack_indices)]

    def num_tokens(self, pack_indices: list[int]) -> int:
        """Tokens of documents in these packs, padding left out."""
        return int(self._totals.tokens[pack_indices].sum())

    def sums_of_lengths(self, pack_indices: list[int]) -> tuple[int, int]:
        """Over the documents of these packs: the sum of their slots, and of those squared."""
        totals = self._totals
        return int(totals.slots[pack_indices].sum()), int(totals.squares[pack_indices].sum())

    def read_ahead(self, steps: range, global_batch_size: int) -> None:
        """Has a thread read the packs of these steps before they are asked for, until `close`."""
        self.close()
        wanted = (
            packs[place]
            for step in steps
            for packs in [self.packs_of_step(step, global_batch_size)]
            for place in self._share(packs)
        )
        self._ahead = PackPrefetcher(self._reader, wanted)

    def close(self) -> None:
        """Ends reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def micro_batches(self, pack_indices: list[int]) -> Iterator[MicroBatch]:
        """This data-parallel rank's share of the packs, one a micro-batch.

        Ranks take turns; packs of the strategy `balanced` are dealt so that ranks cost the same.
        """
        weights = StepWeights(self._weighting, self._reader, pack_indices)
        for place in self._share(pack_indices):
            batch = self._read(pack_indices[place])
            yield self._to_rank(batch, weights.of_pack(place, batch))

    def micro_batch(self, pack_idx: int) -> MicroBatch:
        """One pack, whosever turn it is, as a step of its own."""
        batch = self._reader.read(pack_idx)
        weights = StepWeights(self._weighting, self._reader, [pack_idx])
        return self._to_rank(batch, weights.of_pack(0, batch))

    def _share(self, pack_indices: list[int]) -> list[int]:
        """This rank's places among them."""
        rank, ranks = self._context.dp_rank, self._context.dp_size
        if self._costs is not None and len(pack_indices) % ranks == 0:
            return deal_packs(self._costs[pack_indices], ranks)[rank::ranks].tolist()
        return list(range(len(pack_indices)))[rank::ranks]

    def _read(self, pack_idx: int) -> PackedBatch:
        """A pack, until the next one is read."""
        if self._ahead is not None:
            batch = next(self._ahead, None)
            if batch is not None and batch.pack_idx == pack_idx:
                return batch
            self.close()  # other packs are asked for than those of the steps in turn
        return self._reader.read(pack_idx)

    def _to_rank(self, batch: PackedBatch, weights: PackWeights) -> MicroBatch:
        device = self._context.device
        whole = to_device(batch, device)
        if self._weighting != "token":
            of_tokens = torch.from_numpy(weights.weights).unsqueeze(0)
            divisor = torch.tensor(weights.divisor, dtype=torch.int)
            whole = replace(
                whole,
                loss_weights=of_tokens.to(device, non_blocking=True),
                divisor=divisor.to(device, non_blocking=True),
            )
        if self._slices is not None:
            ids = self._slices.of_documents(batch.document_idx, batch.num_documents)
            whole = replace(
                whole,
                slice_ids=torch.from_numpy(ids).to(device, non_blocking=True),
                num_slices=len(self._slices.names),
            )
        return share_of_rank(whole, self._context)


def to_device(batch: PackedBatch, device: torch.device) -> MicroBatch:
    """Copies of the pack's arrays as tensors with a batch dimension of 1."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).unsqueeze(0).to(device, non_blocking=True, copy=True)

    cu_seqlens = batch.cu_seqlens[: batch.num_documents + 1]
    return MicroBatch(
        tokens=tensor(batch.tokens),
        labels=tensor(batch.labels),
        loss_weights=tensor(batch.loss_weights),
        position_ids=tensor(batch.position_ids),
        packed_seq_params=packed_sequences(
            torch.from_numpy(cu_seqlens).to(device, non_blocking=True, copy=True),
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
    divisor = batch.divisor
    if divisor is not None and context.cp_rank > 0:
        divisor = torch.zeros_like(divisor)  # documents are counted once
    return replace(
        batch,
        tokens=batch.tokens[:, mine],
        labels=batch.labels[:, mine],
        loss_weights=batch.loss_weights[:, mine],
        position_ids=batch.position_ids[:, mine],
        divisor=divisor,
    )
