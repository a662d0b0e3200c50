"""What a backend is: a name, when it can serve, and a function."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dsm_engine.ops.library import cuda_core


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
    cp_size: int = 1
    """Ranks that share the tokens of each document."""


Mask = TypeVar("Mask", Tensor, BlockMask)


@dataclass(slots=True)
class KeptMask(Generic[Mask]):
    """A mask beside what it was made from: made by the first layer of a pack, found by the others.

    Another cu_seqlens is noticed, other numbers written into the same tensor are not: that would
    take a comparison on the device.
    """

    _mask: Mask | None = field(default=None, init=False)
    _cu_seqlens: Tensor | None = field(default=None, init=False)
    _num_tokens: int = field(default=0, init=False)

    def get(self, make: Callable[[Tensor, int], Mask], cu_seqlens: Tensor, num_tokens: int) -> Mask:
        if self._cu_seqlens is not cu_seqlens or self._num_tokens != num_tokens:
            self._mask = None
        if self._mask is None:
            self._mask = make(cu_seqlens, num_tokens)
            self._cu_seqlens, self._num_tokens = cu_seqlens, num_tokens
        return self._mask


class Pack(Protocol):
    """The part of `packs.PackedSequences` that backends use."""

    cu_seqlens_q: Tensor
    max_seqlen_q: int
    lengths: tuple[int, ...]
    mask: KeptMask[Tensor]
    block_mask: KeptMask[BlockMask]

    def slots_of_ranks(self, cp_size: int) -> Tensor: ...


Attend = Callable[[Tensor, Tensor, Tensor, Pack, float | None], Tensor]
"""query [T, heads, head_dim], key and value [T, groups, head_dim], the pack, the scale of the
scores (None: head_dim ** -0.5) -> [T, heads, head_dim]."""

AttendShare = Callable[[Tensor, Tensor, Tensor, Pack, float | None, "ContextParallel"], Tensor]
"""The same for this rank's share of the tokens: all three and the output have T / CP rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextParallel:
    """The ranks that share the tokens of each document, and this one's place among them."""

    group: dist.ProcessGroup
    rank: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute block-diagonal causal attention."""

    name: str
    what: str
    """In a few words."""
    why_not: Callable[[AttentionCase], str | None]
    """Why it cannot serve a case on this machine; None where it can."""
    attend: Attend
    needs_lengths: bool = False
    """Whether it reads the documents' lengths on the host."""
    attend_share: AttendShare | None = None
    """Attention under context parallelism; None where it has none."""

    def reason_against(self, case: AttentionCase) -> str | None:
        """Why it cannot serve a case on this machine; None where it can."""
        if case.cp_size > 1 and self.attend_share is None:
            return "does not serve context parallelism"
        return self.why_not(case)


@cache
def import_error(module: str, function: str, install: str) -> str | None:
    """Why a package cannot be used, None where it can.

    An extension of another build, or one without its driver, raises what it likes: Transformer
    Engine a RuntimeError where torch is a CPU build.
    """
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            return f"is not installed: {install}"
        return f"{module} does not load: {type(error).__name__}: {error}".splitlines()[0]
    return None if hasattr(loaded, function) else f"{module} has no {function}"


def missing_operators(case: AttentionCase) -> str | None:
    """Why the engine's own operators, which make the masks, do not run on the device."""
    if case.device.type != "cuda":
        return None
    if cuda_core is None:
        return "needs the CUDA operators: install dsm_engine where there is nvcc"
    reason = operators_status(case.device)
    return None if reason is None else f"needs the CUDA operators, which do not run here: {reason}"


def operators_status(device: torch.device) -> str | None:
    """Why the CUDA operators, which are built, do not run on a CUDA device; None where they do.

    Their CUDA runtime and architectures are those of the nvcc that built them, not torch's.
    """
    assert cuda_core is not None
    index = torch.cuda.current_device() if device.index is None else device.index
    return _status_of(cuda_core.runtime_status, index)


@cache
def _status_of(runtime_status: Callable[[int], str | None], device_index: int) -> str | None:
    return runtime_status(device_index)


def half_precision_on_cuda(case: AttentionCase, *, capability: tuple[int, int]) -> str | None:
    """Why a kernel of the FlashAttention family cannot serve, by device, dtype and head size."""
    if case.device.type != "cuda":
        return "needs a CUDA device"
    if case.dtype is not torch.bfloat16:
        return f"takes bf16, not {str(case.dtype).removeprefix('torch.')}"
    if case.head_dim % 8 or case.head_dim > 256:
        return f"takes head sizes up to 256 in steps of 8, not {case.head_dim}"
    found = torch.cuda.get_device_capability(case.device)
    if found < capability:
        needed = ".".join(map(str, capability))
        return f"needs compute capability {needed}, the device has {found[0]}.{found[1]}"
    return None
