"""The FlashAttention packages, where they are installed: 3 for Hopper, 2 from Ampere on."""

from typing import Any

import torch
from torch import Tensor

from dsm_engine.model.attention.backend import (
    AttentionCase,
    Backend,
    Pack,
    half_precision_on_cuda,
    import_error,
)

_HOPPER = (9, 0)
_AMPERE = (8, 0)


def _why_not_2(case: AttentionCase) -> str | None:
    return half_precision_on_cuda(case, capability=_AMPERE) or import_error(
        "flash_attn", "flash_attn_varlen_func", "pip install flash-attn"
    )


def _why_not_3(case: AttentionCase) -> str | None:
    reason = half_precision_on_cuda(case, capability=_HOPPER)
    if reason is None and torch.cuda.get_device_capability(case.device)[0] != _HOPPER[0]:
        reason = "is written for Hopper (compute capability 9.0)"
    return reason or import_error(
        "flash_attn_interface",
        "flash_attn_varlen_func",
        "build hopper/ of github.com/Dao-AILab/flash-attention",
    )


def _attend_2(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return _output(flash_attn_varlen_func, query, key, value, pack, scale, {})


def _attend_3(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    from flash_attn_interface import (  # pyright: ignore[reportMissingImports]
        flash_attn_varlen_func,
    )

    # One split: how many there are must not depend on the neighbours.
    return _output(flash_attn_varlen_func, query, key, value, pack, scale, {"num_splits": 1})


def _output(
    function: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Pack,
    scale: float | None,
    options: dict[str, Any],
) -> Tensor:
    output = function(
        query,
        key,
        value,
        cu_seqlens_q=pack.cu_seqlens_q,
        cu_seqlens_k=pack.cu_seqlens_q,
        max_seqlen_q=pack.max_seqlen_q,
        max_seqlen_k=pack.max_seqlen_q,
        softmax_scale=scale,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **options,
    )
    # Betas of version 3 give the log-sum-exp too.
    return output[0] if isinstance(output, tuple) else output


FLASH2 = Backend(
    name="flash2", what="FlashAttention 2 (flash_attn)", why_not=_why_not_2, attend=_attend_2
)
FLASH3 = Backend(
    name="flash3",
    what="FlashAttention 3 (flash_attn_interface)",
    why_not=_why_not_3,
    attend=_attend_3,
)
