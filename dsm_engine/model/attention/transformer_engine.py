"""Transformer Engine's attention over packs (`thd`): cuDNN's fused kernels on Hopper."""

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

_AMPERE = (8, 0)
_CUDNN_OF_GQA = 90_600  # thd with fewer key heads than query heads: cuDNN 9.6


def _why_not(case: AttentionCase) -> str | None:
    reason = half_precision_on_cuda(case, capability=_AMPERE) or _import_error()
    if reason is not None:
        return reason
    cudnn = torch.backends.cudnn.version() or 0
    if case.num_heads != case.num_groups and cudnn < _CUDNN_OF_GQA:
        return f"needs cuDNN 9.6 for fewer key heads than query heads, found {cudnn}"
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    ends = pack.cu_seqlens_q
    # T where every document is shorter too: cuDNN builds a graph for each longest length it meets.
    longest = query.size(0)
    module = _module(
        query.size(1),
        key.size(1),
        query.size(2),
        scale,
        torch.are_deterministic_algorithms_enabled(),
    )
    output = module(
        query,
        key,
        value,
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )  # [T, heads * head_dim]
    return output.view_as(query)


@cache
def _module(
    num_heads: int, num_groups: int, head_dim: int, scale: float | None, deterministic: bool
) -> Any:
    """It has no parameters, so all layers share one; `deterministic` is read when it is made."""
    from transformer_engine.pytorch import (  # pyright: ignore[reportMissingImports]
        DotProductAttention,
    )

    return DotProductAttention(
        num_heads,
        head_dim,
        num_gqa_groups=num_groups,
        attention_dropout=0.0,
        qkv_format="thd",
        attn_mask_type="padding_causal",
        softmax_scale=scale,
    )


@cache
def _import_error() -> str | None:
    try:
        import transformer_engine.pytorch  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "transformer_engine":
            return "transformer-engine is not installed: pip install 'dsm-engine[gpu]'"
        return f"transformer-engine does not load: {error}"
    except Exception as error:  # noqa: BLE001 - RuntimeError without CUDA, OSError without cuDNN
        return f"transformer-engine does not load: {type(error).__name__}: {error}".splitlines()[0]
    return None


TRANSFORMER_ENGINE = Backend(
    name="te",
    what="Transformer Engine thd (cuDNN)",
    why_not=_why_not,
    attend=_attend,
)
