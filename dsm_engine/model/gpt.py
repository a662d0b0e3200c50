"""Builds this rank's part of the model and fills it with fresh weights."""

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from dsm_engine.model.attention.backend import AttentionCase, Backend
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.attention.transformer_engine import ENVIRONMENT, TRANSFORMER_ENGINE
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.model.rope import scaled_inv_freq
from dsm_engine.model.spec import portable_block_spec
from dsm_engine.parallel.config import ParallelConfig, Recompute
from dsm_engine.parallel.context import ParallelContext

_RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_chunks(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    context: ParallelContext,
    *,
    attention: str = "auto",
    training: bool = True,
) -> list[GPTModel]:
    """This rank's chunks of the model, VP of them, on its device, weights not yet meaningful.

    Chunk i of pipeline rank p is the (i * PP + p)-th of the PP * VP equal parts of the layers. Each
    has the tokens' share of tensor and context parallelism. `attention` names a backend; one that
    has no backward serves where `training` is False. Raises DsmError where it cannot serve.
    """
    case = attention_case(model, precision, context, training=training)
    backend = choose_backend(attention, case)
    config = _transformer_config(model, parallel, precision, context)
    if backend is TRANSFORMER_ENGINE:
        config.attention_backend = AttnBackend.fused
    return [
        _build_chunk(model, config, backend, precision, context, chunk_idx)
        for chunk_idx in range(context.vp_size)
    ]


def build_gpt(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    context: ParallelContext,
    *,
    attention: str = "auto",
    training: bool = True,
) -> GPTModel:
    """`build_chunks` where a rank holds one chunk."""
    assert context.vp_size == 1, "an interleaved pipeline has several chunks a rank"
    (chunk,) = build_chunks(
        model, parallel, precision, context, attention=attention, training=training
    )
    return chunk


def _build_chunk(
    model: ModelConfig,
    config: TransformerConfig,
    backend: Backend,
    precision: Precision,
    context: ParallelContext,
    chunk_idx: int,
) -> GPTModel:
    vp_stage = chunk_idx if context.vp_size > 1 else None
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=context.pp_rank)
    rotary_base: Any = model.rotary_base  # annotated int, used as a number
    with context.megatron_scope(), _variables_of_transformer_engine_unset():
        gpt = GPTModel(
            config,
            portable_block_spec(num_layers, backend),
            vocab_size=model.vocab_size,
            max_sequence_length=model.max_position_embeddings,
            pre_process=context.is_first_stage and chunk_idx == 0,
            post_process=context.is_last_stage and chunk_idx == context.vp_size - 1,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="rope",
            rotary_base=rotary_base,
            vp_stage=vp_stage,
        )
    gpt = gpt.to(device=context.device, dtype=DTYPES[precision])
    if model.rope_scaling is not None:
        gpt.rotary_pos_emb.inv_freq = scaled_inv_freq(
            model.rope_scaling, gpt.rotary_pos_emb.inv_freq
        )
    _mark_sharded_parameters(gpt)
    return gpt


@contextmanager
def _variables_of_transformer_engine_unset() -> Iterator[None]:
    """Megatron refuses values other than those of its attention_backend, and leaves its own behind.

    The backend `te` alone calls Transformer Engine, and sets them itself.
    """
    values = {name: os.environ.pop(name, None) for name in ENVIRONMENT}
    try:
        yield
    finally:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def attention_case(
    model: ModelConfig, precision: Precision, context: ParallelContext, *, training: bool = True
) -> AttentionCase:
    """What one rank of the model asks of its attention."""
    return AttentionCase(
        device=context.device,
        dtype=DTYPES[precision],
        num_heads=model.num_attention_heads // context.tp_size,
        num_groups=model.num_query_groups // context.tp_size,
        head_dim=model.head_dim,
        training=training,
        cp_size=context.cp_size,
    )


@dataclass(frozen=True, kw_only=True)
class NamedShard:
    """One parameter of this rank and where it lies in the whole model's parameter."""

    name: str
    """Name in the whole model: layers are numbered across pipeline stages."""
    parameter: torch.nn.Parameter
    full_shape: tuple[int, ...]
    partition_dim: int | None
    """Dimension split over TP ranks; None where every rank holds all of it."""
    tp_rank: int
    tp_size: int

    def shard_of(self, full: Tensor) -> Tensor:
        """This rank's part of a tensor of `full_shape`."""
        assert tuple(full.shape) == self.full_shape, (self.name, full.shape, self.full_shape)
        if self.partition_dim is None or self.tp_size == 1:
            return full
        if self.name.endswith("mlp.linear_fc1.weight"):
            # Gate and up projections are stacked, and each is split by itself.
            halves = [half.chunk(self.tp_size)[self.tp_rank] for half in full.chunk(2)]
            return torch.cat(halves)
        return full.chunk(self.tp_size, dim=self.partition_dim)[self.tp_rank]


def named_shards(gpt: GPTModel, context: ParallelContext) -> Iterator[NamedShard]:
    """Every parameter of this rank's chunk, under its name in the whole model."""
    offset = get_transformer_layer_offset(
        gpt.config, vp_stage=gpt.vp_stage, pp_rank=context.pp_rank
    )
    for local_name, parameter in gpt.named_parameters():
        sharded = getattr(parameter, "tensor_model_parallel", False)
        partition_dim: int | None = getattr(parameter, "partition_dim", None) if sharded else None
        shape = list(parameter.shape)
        if partition_dim is not None:
            shape[partition_dim] *= context.tp_size
        yield NamedShard(
            name=_global_name(local_name, offset),
            parameter=parameter,
            full_shape=tuple(shape),
            partition_dim=partition_dim,
            tp_rank=context.tp_rank,
            tp_size=context.tp_size,
        )


def initialize_weights(
    chunks: Sequence[GPTModel], model: ModelConfig, context: ParallelContext, *, seed: int
) -> None:
    """Fresh weights that depend on the seed and the parameter's name alone.

    So every layout starts from the same model. Normal with `init_method_std`; projections back
    to the residual stream have it divided by sqrt(2 * num_layers) (GPT-2, section 2.3); norms 1.
    """
    residual_std = model.init_method_std / math.sqrt(2 * model.num_layers)
    for shard in (shard for chunk in chunks for shard in named_shards(chunk, context)):
        with torch.no_grad():
            if len(shard.full_shape) == 1:
                shard.parameter.fill_(1.0)
                continue
            to_residual = shard.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            std = residual_std if to_residual else model.init_method_std
            name = shard.name
            if model.tie_word_embeddings and name == "output_layer.weight":
                name = "embedding.word_embeddings.weight"  # the last stage's copy under PP
            # torch's generator takes 32 bits of a seed, so both go through one hash.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            full = torch.randn(shard.full_shape, generator=generator) * std
            shard.parameter.copy_(shard.shard_of(full))


def _mark_sharded_parameters(gpt: GPTModel) -> None:
    """Says which parameters are split over TP ranks, and along which dimension.

    Megatron marks them only when it initialises them itself, which we leave out (it would fill
    the whole matrix on every rank); the gradient norm is wrong without the marks.
    """
    for module in gpt.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            dim = 0
        elif isinstance(module, RowParallelLinear):
            dim = 1
        else:
            continue
        if module.weight is not None:  # None: an output layer that uses the embedding
            set_tensor_model_parallel_attributes(module.weight, True, dim, 1)


def _global_name(local_name: str, layer_offset: int) -> str:
    parts = local_name.split(".")
    if "layers" in parts:
        layer = parts.index("layers") + 1
        parts[layer] = str(int(parts[layer]) + layer_offset)
    return ".".join(parts)


def _transformer_config(
    model: ModelConfig, parallel: ParallelConfig, precision: Precision, context: ParallelContext
) -> TransformerConfig:
    on_cpu = context.device.type == "cpu"
    dtype = DTYPES[precision]
    options: dict[str, Any] = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn_hidden_size,
        "layernorm_epsilon": model.layernorm_epsilon,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        # Dropout would make the loss depend on the layout: the recipe has none.
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": context.vp_size if context.vp_size > 1 else None,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "bf16": precision == "bf16",
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "perform_initialization": False,
        "use_cpu_initialization": on_cpu,
        # Fusions are torch.compile or CUDA kernels.
        "bias_activation_fusion": not on_cpu,
        "bias_dropout_fusion": not on_cpu,
        "gradient_accumulation_fusion": False,
        # Two ranks of an interleaved pipeline exchange several tensors at a time, both ways.
        "overlap_p2p_comm": context.vp_size > 1,
        "batch_p2p_comm": context.vp_size == 1,
        "batch_p2p_sync": not on_cpu,
        **_RECOMPUTE[parallel.recompute],
        # The loss is a sum; Megatron divides gradients once by the global token count.
        "calculate_per_token_loss": True,
    }
    return TransformerConfig(**options)
