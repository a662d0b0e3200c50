"""torch's FlexAttention, compiled, with the BlockMask of dsm_engine.ops.block_mask."""

import importlib.util
import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsm_engine.model.attention.backend import (
    AttentionCase,
    Backend,
    Pack,
    missing_operators,
)
from dsm_engine.ops.block_mask import block_mask

_AMPERE = (8, 0)
_SMALLEST_HEAD = 16
_CXX = ("c++", "g++", "clang++")


def _why_not(case: AttentionCase) -> str | None:
    if case.head_dim < _SMALLEST_HEAD:
        return f"takes heads of {_SMALLEST_HEAD} and more, not {case.head_dim}"
    if case.device.type == "cpu":
        if case.training:
            return "has no backward on the CPU"
        if not any(map(shutil.which, _CXX)):
            return "is compiled, and there is no C++ compiler"
        return None
    if torch.cuda.get_device_capability(case.device) < _AMPERE:
        return "needs compute capability 8.0"
    if importlib.util.find_spec("triton") is None:
        return "is compiled, and triton is not installed"
    return missing_operators(case)


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    output = _compiled()(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        block_mask=pack.block_mask.get(block_mask, pack.cu_seqlens_q, query.size(0)),
        scale=scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    return output[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    """One function for all layers and packs; torch compiles it again for other shapes alone."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


FLEX = Backend(
    name="flex",
    what="torch FlexAttention with a block mask",
    why_not=_why_not,
    attend=_attend,
)
