"""The torch library the operators are defined in, and what their implementations share."""

import numbers
from collections.abc import Callable
from typing import Any

import torch

from dsm_engine.errors import DsmError

try:
    from dsm_engine import _cuda as cuda_core
except ImportError:  # built where there is no nvcc
    cuda_core = None

library = torch.library.Library("dsm", "DEF")

# int32 counts the tokens of a pack.
_MOST_TOKENS = (1 << 31) - 1


def check_cu_seqlens(op: str, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """cu_seqlens made contiguous; raises DsmError unless it is one row of int32."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise DsmError(
            f"dsm::{op}: cu_seqlens is one row of two or more int32,"
            f" found {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    return cu_seqlens.contiguous()


def check_row(op: str, name: str, row: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The row made contiguous; raises DsmError unless it is one-dimensional and of this dtype."""
    if row.dtype != dtype or row.dim() != 1:
        raise DsmError(
            f"dsm::{op}: {name} is one row of {dtype}, found {row.dtype} {tuple(row.shape)}"
        )
    return row.contiguous()


def check_one_device(op: str, *tensors: torch.Tensor) -> None:
    """Raises DsmError unless the tensors are on one device."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise DsmError(f"dsm::{op}: all tensors are on one device, found {names}")


def check_num_tokens(op: str, num_tokens: int) -> None:
    """Raises DsmError unless num_tokens is the size of a pack, which int32 must hold."""
    if not 0 <= num_tokens <= _MOST_TOKENS:
        raise DsmError(f"dsm::{op}: num_tokens is 0 to 2^31 - 1, found {num_tokens}")


def check_int(op: str, name: str, value: object) -> None:
    """Raises DsmError unless the value is an int, numpy's and the symbolic of a trace included."""
    if not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise DsmError(f"dsm::{op}: {name} is an int, found {type(value).__name__}")


def limit_window(op: str, window: int | None) -> int | None:
    """The window, no larger than a pack can be; raises DsmError unless 1 or more, or None."""
    if window is None:
        return None
    check_int(op, "window", window)
    if window < 1:
        raise DsmError(f"dsm::{op}: window is 1 or more, or None, found {window}")
    return min(window, _MOST_TOKENS)


def reach(num_tokens: int, window: int | None) -> int:
    """The window as the core takes it: at least 1, and no more than there are tokens."""
    return max(1, num_tokens if window is None else min(window, num_tokens))


def cuda_launcher(op: str) -> Callable[..., None]:
    """The launcher of the operator's kernel; raises DsmError where it was not built."""
    if cuda_core is None:
        raise DsmError(
            f"dsm::{op}: dsm_engine was built without nvcc and has no CUDA kernels:"
            " make install where nvcc is"
        )
    return getattr(cuda_core, op)


def stream_address(device: torch.device) -> int:
    """The current CUDA stream of the device, as the launchers take it."""
    return torch.cuda.current_stream(device).cuda_stream


def with_stream(arguments: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """What a CPU function takes and the device's stream: what the launcher of its name takes."""
    return (*arguments, stream_address(device))
