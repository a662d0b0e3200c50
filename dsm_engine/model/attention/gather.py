"""The whole pack's rows from those of the context-parallel ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsm_engine.model.attention.backend import ContextParallel, Pack


def gather_pack(share: Tensor, pack: Pack, ranks: ContextParallel) -> Tensor:
    """[T / CP, ...] of this rank -> [T, ...] in the pack's order, on every rank.

    Backward, each rank's gradients of the whole are summed and this rank's rows handed back.
    """
    return _GatherPack.apply(share, pack.slots_of_ranks(ranks.size).flatten(), ranks.group)


class _GatherPack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, slots: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.slots, ctx.group = slots, group
        by_rank = share.new_empty((len(slots), *share.shape[1:]))
        dist.all_gather_into_tensor(by_rank, share.contiguous(), group=group)
        whole = torch.empty_like(by_rank)
        whole[slots] = by_rank  # each slot once
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (whole,) = gradients
        by_rank = whole[ctx.slots]
        share = by_rank.new_empty((len(by_rank) // ctx.group.size(), *by_rank.shape[1:]))
        dist.reduce_scatter_tensor(share, by_rank, group=ctx.group)
        return share, None, None
