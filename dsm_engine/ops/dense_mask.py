"""dsm::dense_mask: the block-diagonal mask of a pack as one dense matrix, or as a band of it.

num_tokens^2 elements: for the reference attention and small models. Kernels take cu_seqlens.
"""

from typing import Any

import torch

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_int,
    check_num_tokens,
    cuda_launcher,
    library,
    limit_window,
    reach,
    with_stream,
)

_DTYPES = (torch.bool, torch.bfloat16, torch.float32)


def dense_mask(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype = torch.bool,
    causal: bool = True,
    window: int | None = None,
    bandwidth: int | None = None,
) -> torch.Tensor:
    """Which keys (columns) each query (row) of a pack of T tokens attends to: [1, 1, T, T].

    To those of its own document; where causal, to none after itself; with a window, only to keys
    less than `window` tokens from it. With a bandwidth W, which needs causal, the result is
    [1, 1, T, W]: entry (t, w) tells of key t - (W - 1) + w, and no query attends to keys below 0.

    dtype is bool (True where it attends), or bfloat16 or float32 to be added to scores (0 where it
    attends, else -inf). cu_seqlens is int32 [num_entries], from 0 to T without falling; entries
    that repeat T are padding. On the CPU a fault in it raises DsmError; on CUDA it is not checked.
    """
    check_int("dense_mask", "num_tokens", num_tokens)
    window = limit_window("dense_mask", window)
    return torch.ops.dsm.dense_mask(
        cu_seqlens, num_tokens, dtype=dtype, causal=causal, window=window, bandwidth=bandwidth
    )


def dense_mask_reference(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype = torch.bool,
    causal: bool = True,
    window: int | None = None,
    bandwidth: int | None = None,
) -> torch.Tensor:
    """What `dense_mask` computes, in plain torch."""
    queries = torch.arange(num_tokens, device=cu_seqlens.device)[:, None]
    if bandwidth is None:
        keys = queries.T
    else:
        columns = torch.arange(bandwidth, device=cu_seqlens.device)
        keys = queries - (bandwidth - 1) + columns
    ends = cu_seqlens.long()
    attended = torch.searchsorted(ends, queries, right=True) == torch.searchsorted(
        ends, keys.contiguous(), right=True
    )
    if causal:
        attended &= keys <= queries
    if window is not None:
        attended &= (queries - keys).abs() < window
    if dtype != torch.bool:
        zeros = torch.zeros(attended.shape, dtype=dtype, device=cu_seqlens.device)
        attended = zeros.masked_fill(~attended, float("-inf"))
    return attended[None, None]


library.define(
    "dense_mask(Tensor cu_seqlens, SymInt num_tokens, *, ScalarType dtype, bool causal,"
    " SymInt? window, SymInt? bandwidth) -> Tensor"
)


@torch.library.impl(library, "dense_mask", "CPU")
def _dense_mask_cpu(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype,
    causal: bool,
    window: int | None,
    bandwidth: int | None,
) -> torch.Tensor:
    cu_seqlens = check_cu_seqlens("dense_mask", cu_seqlens)
    _check_options(num_tokens, dtype, causal, window, bandwidth)
    mask = _empty_mask(
        cu_seqlens, num_tokens, dtype=dtype, causal=causal, window=window, bandwidth=bandwidth
    )
    _core.dense_mask(*_arguments(cu_seqlens, num_tokens, causal, window, bandwidth, mask))
    return mask


def _dense_mask_cuda(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype,
    causal: bool,
    window: int | None,
    bandwidth: int | None,
) -> torch.Tensor:
    launch = cuda_launcher("dense_mask")
    cu_seqlens = check_cu_seqlens("dense_mask", cu_seqlens)
    _check_options(num_tokens, dtype, causal, window, bandwidth)
    with torch.cuda.device(cu_seqlens.device):
        mask = _empty_mask(
            cu_seqlens, num_tokens, dtype=dtype, causal=causal, window=window, bandwidth=bandwidth
        )
        arguments = _arguments(cu_seqlens, num_tokens, causal, window, bandwidth, mask)
        launch(*with_stream(arguments, cu_seqlens.device))
    return mask


def _check_options(
    num_tokens: int, dtype: torch.dtype, causal: bool, window: int | None, bandwidth: int | None
) -> None:
    check_num_tokens("dense_mask", num_tokens)
    if dtype not in _DTYPES:
        raise DsmError(f"dsm::dense_mask: dtype is bool, bfloat16 or float32, found {dtype}")
    limit_window("dense_mask", window)
    if bandwidth is not None and not 1 <= bandwidth < 1 << 31:
        raise DsmError(f"dsm::dense_mask: bandwidth is 1 to 2^31 - 1, found {bandwidth}")
    if bandwidth is not None and not causal:
        raise DsmError("dsm::dense_mask: a bandwidth needs causal=True")


def _arguments(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    causal: bool,
    window: int | None,
    bandwidth: int | None,
    mask: torch.Tensor,
) -> tuple[Any, ...]:
    return (
        cu_seqlens.data_ptr(),
        cu_seqlens.numel(),
        num_tokens,
        mask.size(-1),
        bandwidth is not None,
        causal,
        reach(num_tokens, window),
        mask.element_size(),
        mask.data_ptr(),
    )


@torch.library.register_fake("dsm::dense_mask", lib=library)
def _empty_mask(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    dtype: torch.dtype,
    causal: bool,
    window: int | None,
    bandwidth: int | None,
) -> torch.Tensor:
    row_length = num_tokens if bandwidth is None else bandwidth
    return cu_seqlens.new_empty((1, 1, num_tokens, row_length), dtype=dtype)


library.impl("dense_mask", _dense_mask_cuda, "CUDA")
