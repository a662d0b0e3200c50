"""Megatron-Core layer specs: which module stands where in a layer."""

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from dsm_engine.model.attention.backend import Backend
from dsm_engine.model.attention.core_attention import PackedAttention


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron's signature.

    Megatron's own wrapper refuses sequence parallelism; all that needs is the mark on the weight
    that makes its gradient summed over the TP group.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel


def portable_block_spec(num_layers: int, attention: Backend) -> Any:
    """TransformerBlockSubmodules of one pipeline stage, from Megatron's own torch modules.

    Runs on any device. Megatron's annotations are narrower than what its spec builder takes
    (classes, and functions that return functions), hence the Any.
    """
    submodules: Any = TransformerLayerSubmodules
    attention_submodules: Any = SelfAttentionSubmodules
    block: Any = TransformerBlockSubmodules
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=submodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=attention_submodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=ModuleSpec(
                        module=PackedAttention, params={"backend": attention}
                    ),
                    linear_proj=RowParallelLinear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return block(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)
