"""What a backend is: a name, when it can serve, and a function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """What a model asks of its attention, on one rank."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    """Query heads."""
    num_groups: int
    """Key and value heads; divides num_heads."""
    head_dim: int
    training: bool = True
    """Whether gradients are wanted."""


class Pack(Protocol):
    """The part of `packs.PackedSequences` that backends use."""

    cu_seqlens_q: Tensor
    max_seqlen_q: int
    lengths: tuple[int, ...]
    mask: Tensor | None
    block_mask: BlockMask | None


Attend = Callable[[Tensor, Tensor, Tensor, Pack, float | None], Tensor]
"""query [T, heads, head_dim], key and value [T, groups, head_dim], the pack, the scale of the
scores (None: head_dim ** -0.5) -> [T, heads, head_dim]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute block-diagonal causal attention."""

    name: str
    what: str
    """In a few words."""
    why_not: Callable[[AttentionCase], str | None]
    """Why it cannot serve a case on this machine; None where it can."""
    attend: Attend


def half_precision_on_cuda(case: AttentionCase, *, capability: tuple[int, int]) -> str | None:
    """Why a kernel of the FlashAttention family cannot serve, by device, dtype and head size."""
    if case.device.type != "cuda":
        return "needs a CUDA device"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"takes bf16, not {str(case.dtype).removeprefix('torch.')}"
    if case.head_dim % 8 or case.head_dim > 256:
        return f"takes head sizes up to 256 in steps of 8, not {case.head_dim}"
    found = torch.cuda.get_device_capability(case.device)
    if found < capability:
        needed = ".".join(map(str, capability))
        return f"needs compute capability {needed}, the device has {found[0]}.{found[1]}"
    return None
