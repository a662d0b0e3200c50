"""torch's own variable-length attention (`torch.nn.attention.varlen`): FlashAttention 2 inside."""

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsm_engine.model.attention.backend import (
    AttentionCase,
    Backend,
    Pack,
    half_precision_on_cuda,
)


def _why_not(case: AttentionCase) -> str | None:
    reason = half_precision_on_cuda(case, capability=(8, 0))
    if reason is not None:
        return reason
    parameters = _parameters()
    if not {"scale", "window_size"} <= parameters:
        return f"torch {torch.__version__} has no such varlen_attn: 2.11 has"
    if case.num_heads != case.num_groups and "enable_gqa" not in parameters:
        return f"torch {torch.__version__} wants as many key heads as query heads: 2.12 does not"
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    parameters = _parameters()
    ends, longest = pack.cu_seqlens_q, pack.max_seqlen_q
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}  # causal
    if query.size(1) != key.size(1):
        options["enable_gqa"] = True
    if "num_splits" in parameters:
        # Splitting keys over blocks depends on the longest document: neighbours would be felt.
        options["num_splits"] = 1
    return _function()(query, key, value, ends, ends, longest, longest, **options)


def _function() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@cache
def _parameters() -> frozenset[str]:
    try:
        return frozenset(inspect.signature(_function()).parameters)
    except ImportError:
        return frozenset()


VARLEN = Backend(
    name="varlen",
    what="torch varlen_attn (FlashAttention 2)",
    why_not=_why_not,
    attend=_attend,
)
