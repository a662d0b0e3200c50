"""Transformer Engine's attention over packs (`thd`): cuDNN's fused kernels on Hopper."""

import os
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsm_engine.model.attention.backend import (
    AttentionCase,
    Backend,
    ContextParallel,
    Pack,
    half_precision_on_cuda,
    import_error,
)

# Where cuDNN cannot serve, Transformer Engine goes on with other kernels without a word, in the end
# with plain torch on documents padded to the length of the pack. So what TE 2.11's
# get_attention_backend and nvte_get_fused_attn_backend want of cuDNN is asked here.
_HOPPER = (9, 0)
_WITHOUT_THD = (12, 0)
_BLACKWELL = 10
_CUDNN = 90_600  # the first with thd for fewer key heads than query heads
_CUDNN_ON_BLACKWELL = 90_700
_CUDNN_OF_LARGE_HEADS_ON_BLACKWELL = 90_900
_SMALL_HEAD = 128
ENVIRONMENT = {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"}
"""By which Transformer Engine takes cuDNN or raises."""


def _why_not(case: AttentionCase) -> str | None:
    reason = half_precision_on_cuda(case, capability=_HOPPER)
    if reason is not None:
        return reason
    if os.environ.get("NVTE_FUSED_ATTN") == "0":
        return "NVTE_FUSED_ATTN=0 is set: it forbids cuDNN"
    capability = torch.cuda.get_device_capability(case.device)
    if capability == _WITHOUT_THD:
        return "has no cuDNN kernels over packs for compute capability 12.0"
    deterministic = torch.are_deterministic_algorithms_enabled()
    if case.training and deterministic and capability[0] >= _BLACKWELL:
        return "has no deterministic backward from compute capability 10.0 on"
    if case.training and case.head_dim > _SMALL_HEAD and capability != _HOPPER:
        return f"trains head sizes above {_SMALL_HEAD} on compute capability 9.0 alone"
    version, needed = torch.backends.cudnn.version() or 0, _needed_cudnn(case, capability)
    if version < needed:
        return f"needs cuDNN {_version_name(needed)}, found {_version_name(version)}"
    return import_error(
        "transformer_engine.pytorch", "DotProductAttention", "pip install 'dsm-engine[gpu]'"
    )


def _needed_cudnn(case: AttentionCase, capability: tuple[int, int]) -> int:
    if capability[0] < _BLACKWELL:
        return _CUDNN
    if case.head_dim > _SMALL_HEAD:
        return _CUDNN_OF_LARGE_HEADS_ON_BLACKWELL
    return _CUDNN_ON_BLACKWELL


def _version_name(version: int) -> str:
    return f"{version // 10_000}.{version // 100 % 100}"


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    return _call(query, key, value, pack, scale, None)


def _attend_share(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Pack,
    scale: float | None,
    ranks: ContextParallel,
) -> Tensor:
    """Keys and values go around the ranks while attention to those that are here is computed."""
    return _call(query, key, value, pack, scale, ranks.group)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Pack,
    scale: float | None,
    group: dist.ProcessGroup | None,
) -> Tensor:
    ends = pack.cu_seqlens_q
    # T where every document is shorter too: cuDNN builds a graph for each longest length it meets.
    longest = query.size(0) * (1 if group is None else group.size())
    module = _module(
        query.size(1),
        key.size(1),
        query.size(2),
        scale,
        torch.are_deterministic_algorithms_enabled(),
        group,
    )
    # Documents take a multiple of 2 * CP slots already: padding is part of them.
    padded: dict[str, Any] = {}
    if group is not None:
        padded = {
            "cu_seqlens_q_padded": ends,
            "cu_seqlens_kv_padded": ends,
            "pad_between_seqs": False,  # else compared on the device
        }
    output = module(
        query,
        key,
        value,
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        **padded,
    )  # [T / CP, heads * head_dim]
    return output.view_as(query)


@cache
def _module(
    num_heads: int,
    num_groups: int,
    head_dim: int,
    scale: float | None,
    deterministic: bool,
    group: dist.ProcessGroup | None,
) -> Any:
    """It has no parameters, so all layers share one; `deterministic` is read when it is made."""
    from transformer_engine.pytorch import (  # pyright: ignore[reportMissingImports]
        DotProductAttention,
    )

    os.environ.update(ENVIRONMENT)  # read at each call, for as long as the process lives
    module = DotProductAttention(
        num_heads,
        head_dim,
        num_gqa_groups=num_groups,
        attention_dropout=0.0,
        qkv_format="thd",
        attn_mask_type="padding_causal",
        softmax_scale=scale,
    )
    if group is not None:
        module.set_context_parallel_group(
            group, dist.get_process_group_ranks(group), torch.cuda.Stream(), "p2p"
        )
    return module


TRANSFORMER_ENGINE = Backend(
    name="te",
    what="Transformer Engine thd (cuDNN)",
    why_not=_why_not,
    attend=_attend,
    attend_share=_attend_share,
)
