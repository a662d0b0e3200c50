"""The examples of a step: packs, documents, and the loss each had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.stream import MicroBatch, PackStream

Sums = list[tuple[float, int]]
"""Loss and supervised tokens of each document of a pack, in its order."""


@dataclass(frozen=True, kw_only=True)
class PackExamples:
    """A pack of a step."""

    pack: int
    """Number in the pack index."""
    documents: list[int]
    """Dataset ids, in the order of the pack."""
    losses: list[float | None]
    """Mean over the supervised tokens of each (nats); None where it has none."""


def document_sums(token_losses: Tensor, batch: MicroBatch, *, cp_size: int) -> Sums:
    """Loss and supervised tokens of each document in this rank's share of a pack.

    `token_losses` is [1, T]. Of every document each context-parallel rank has an equal share. The
    tail padding is the last document where there is some; it has no supervised tokens.
    """
    ends = (batch.packed_seq_params.cu_seqlens_q // cp_size).tolist()
    losses = token_losses.detach().cpu().double().flatten()
    supervised = (batch.loss_weights > 0).cpu().flatten()
    sums: Sums = []
    for begin, end in pairwise(ends):
        mine = losses[begin:end][supervised[begin:end]]
        sums.append((float(mine.sum()), len(mine)))
    return sums


def examples_of_step(
    stream: PackStream,
    packs: Sequence[int],
    token_losses: Sequence[Tensor],
    context: ParallelContext,
) -> list[PackExamples]:
    """The packs of a step with the loss of each document, on every rank.

    All ranks together. `token_losses` are [1, T] of this rank's micro-batches; none on ranks
    without the output layer.
    """
    mine: dict[int, Sums] = {}
    if token_losses and context.tp_rank == 0:
        for losses, pack in zip(token_losses, stream.packs_of_rank(list(packs)), strict=True):
            batch = stream.micro_batch(pack)
            mine[pack] = document_sums(losses, batch, cp_size=context.cp_size)
    parts: list[Any] = [None] * context.world_size
    dist.all_gather_object(parts, mine)
    sums = _added(parts)
    return [
        PackExamples(
            pack=pack,
            documents=documents,
            losses=[total / n if n else None for total, n in sums[pack][: len(documents)]],
        )
        for pack in packs
        for documents in [stream.documents_of(pack)]
    ]


def _added(parts: Sequence[Mapping[int, Sums]]) -> dict[int, Sums]:
    """Context-parallel ranks have shares of the same packs."""
    added: dict[int, Sums] = {}
    for part in parts:
        for pack, sums in part.items():
            before = added.get(pack, [(0.0, 0)] * len(sums))
            added[pack] = [
                (total + more, n + m) for (total, n), (more, m) in zip(before, sums, strict=True)
            ]
    return added


def worst_documents(examples: Sequence[PackExamples], count: int) -> list[tuple[int, float]]:
    """Dataset ids and losses of the documents with the highest losses; not finite comes first."""
    losses = [
        (document, loss)
        for pack in examples
        for document, loss in zip(pack.documents, pack.losses, strict=True)
        if loss is not None
    ]
    return sorted(losses, key=lambda item: _badness(item[1]), reverse=True)[:count]


def _badness(loss: float) -> float:
    return float("inf") if torch.isnan(torch.tensor(loss)) else loss
