"""The reference: SDPA under one T x T mask."""

import torch.nn.functional as F
from torch import Tensor

from dsm_engine.model.attention.backend import (
    AttentionCase,
    Backend,
    Pack,
    missing_operators,
)
from dsm_engine.ops.dense_mask import dense_mask


def _why_not(case: AttentionCase) -> str | None:
    return missing_operators(case)


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=pack.mask.get(dense_mask, pack.cu_seqlens_q, query.size(0)),
        scale=scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    return output[0].transpose(0, 1)


DENSE = Backend(
    name="dense",
    what="torch SDPA with a T x T mask: the reference",
    why_not=_why_not,
    attend=_attend,
)
