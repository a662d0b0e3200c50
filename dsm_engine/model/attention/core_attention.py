"""Megatron's core attention module over packs."""

from typing import Any

import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from dsm_engine.model.attention.backend import Backend, ContextParallel
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
        self._backend = backend
        self._scale = softmax_scale
        self._ranks: ContextParallel | None = None
        if config.context_parallel_size > 1:
            group: Any = parallel_state.get_context_parallel_group()
            self._ranks = ContextParallel(group=group, rank=group.rank(), size=group.size())

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
        """[T / CP, heads, head_dim] -> the same for packs; without one
        [s, b, heads, head_dim] -> [s, b, h * d]."""
        assert attention_mask is None and attention_bias is None
        if packed_seq_params is not None and self._ranks is not None:
            attend_share = self._backend.attend_share
            assert attend_share is not None, "the choice of the backend asks for it"
            return attend_share(query, key, value, packed_seq_params, self._scale, self._ranks)
        if packed_seq_params is not None:
            return self._backend.attend(query, key, value, packed_seq_params, self._scale)
        assert self._ranks is None, "context parallelism is over packs"
        output = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self._scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return output.permute(2, 0, 1, 3).flatten(2)
