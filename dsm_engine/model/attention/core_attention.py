"""Megatron's core attention module over packs."""

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from dsm_engine.model.attention.backend import Backend
from dsm_engine.model.attention.packs import PackedSequences


class PackedAttention(MegatronModule):
    """Core attention for Megatron's SelfAttention: packs as thd, plain causal batches as sbhd."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        *,
        backend: Backend,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self._attend = backend.attend
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """[T, heads, head_dim] -> the same for packs; [s, b, heads, head_dim] -> [s, b, h * d]."""
        assert attention_mask is None and attention_bias is None
        if packed_seq_params is not None:
            return self._attend(query, key, value, packed_seq_params, self._scale)
        output = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self._scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return output.permute(2, 0, 1, 3).flatten(2)
