"""The torch library the operators are defined in, and what their implementations share."""

from typing import Any

import torch

from dsm_engine.errors import DsmError

try:
    from dsm_engine import _cuda as cuda_core
except ImportError:  # built where there is no nvcc
    cuda_core = None

library = torch.library.Library("dsm", "DEF")


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
    if not 0 <= num_tokens < 1 << 31:
        raise DsmError(f"dsm::{op}: num_tokens is 0 to 2^31 - 1, found {num_tokens}")


def stream_address(device: torch.device) -> int:
    """The current CUDA stream of the device, as the launchers take it."""
    return torch.cuda.current_stream(device).cuda_stream


def with_stream(arguments: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """What a CPU function takes and the device's stream: what the launcher of its name takes."""
    return (*arguments, stream_address(device))
