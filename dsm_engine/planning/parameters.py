"""Which parameters each rank holds, and how Megatron's buffers lay them out.

A pipeline stage of a tensor-parallel rank holds chunks of the model; tensor-parallel ranks hold
equally much. Gradients, and parameters under the distributed optimizer, lie in one buffer a chunk,
cut into buckets; its padding and its shards follow megatron.core's `_ParamAndGradBuffer`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from dsm_engine.model.config import ModelConfig
from dsm_engine.parallel.config import ParallelConfig

Component = Literal["embedding", "attention", "mlp", "norms", "head"]
COMPONENTS: tuple[Component, ...] = ("embedding", "attention", "mlp", "norms", "head")

_PARAMETER_ALIGNMENT = 64  # elements; parameters of the distributed optimizer begin at multiples
_BUCKET_ALIGNMENT = 128


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter as one rank holds it."""

    component: Component
    numel: int
    is_shared: bool = False
    """Whether the embedding is the output layer on another stage, so that it has its own bucket."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Elements [begin, end) of a buffer, padding included, and where its parameters lie."""

    begin: int
    end: int
    parameters: tuple[tuple[int, int], ...]
    """[begin, end) of each parameter, in elements of the buffer."""

    def shard_numel(self, shard: int, num_shards: int) -> int:
        """Elements of parameters in one of the equal shards."""
        width = (self.end - self.begin) // num_shards
        begin = self.begin + shard * width
        return sum(
            max(0, min(last, begin + width) - max(first, begin)) for first, last in self.parameters
        )

    def largest_shard_numel(self, num_shards: int) -> int:
        """Of the shard with the most."""
        width = (self.end - self.begin) // num_shards
        if num_shards <= 8:
            return max(self.shard_numel(shard, num_shards) for shard in range(num_shards))
        return min(width, sum(last - first for first, last in self.parameters))


@dataclass(frozen=True, kw_only=True)
class ChunkParameters:
    """The parameters of one model chunk, in Megatron's order, and the buffer that holds them."""

    parameters: tuple[Parameter, ...]
    buckets: tuple[Bucket, ...]
    num_shards: int
    """Ranks that share the optimizer's states; 1 without distributed optimizer."""

    @cached_property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def buffer_numel(self) -> int:
        """Elements of the buffer, padding included."""
        return self.buckets[-1].end

    @cached_property
    def largest_shard_numel(self) -> int:
        """Elements whose optimizer state a rank holds, at most."""
        return sum(bucket.largest_shard_numel(self.num_shards) for bucket in self.buckets)

    @cached_property
    def shared_numel(self) -> int:
        """Elements of the embedding where it stands on two stages."""
        return sum(parameter.numel for parameter in self.parameters if parameter.is_shared)

    def shard_numel(self, shard: int) -> int:
        """Elements whose optimizer state the rank at place `shard` holds."""
        return sum(bucket.shard_numel(shard, self.num_shards) for bucket in self.buckets)

    @cached_property
    def components(self) -> dict[Component, int]:
        """Elements of each component."""
        return parameters_by_component(self.parameters)


def parameters_by_component(parameters: Sequence[Parameter]) -> dict[Component, int]:
    """Elements of each component."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for parameter in parameters:
        counts[parameter.component] += parameter.numel
    return counts


def stage_chunks(
    model: ModelConfig, parallel: ParallelConfig, *, stage: int, dp_cp_size: int
) -> tuple[ChunkParameters, ...]:
    """The chunks that each rank of pipeline stage `stage` holds. The layout must fit the model."""
    pp = parallel.pipeline_model_parallel_size
    vp = parallel.virtual_pipeline_model_parallel_size
    tp = parallel.tensor_model_parallel_size
    heads, groups = model.num_attention_heads, model.num_query_groups
    return tuple(
        _chunk(
            _ChunkShape(
                num_layers=model.num_layers // (pp * vp),
                hidden=model.hidden_size,
                query=heads * model.head_dim // tp,
                query_key_value=(heads + 2 * groups) * model.head_dim // tp,
                ffn=model.ffn_hidden_size // tp,
                vocabulary=model.vocab_size // tp,
                is_first=stage == 0 and chunk == 0,
                is_last=stage == pp - 1 and chunk == vp - 1,
                is_tied=model.tie_word_embeddings,
                is_pipeline=pp > 1,
                is_cut=parallel.overlap_grad_reduce and stage == 0 and chunk == 0,
                num_shards=dp_cp_size if parallel.use_distributed_optimizer else None,
                dp_cp_size=dp_cp_size,
            )
        )
        for chunk in range(vp)
    )


@dataclass(frozen=True, kw_only=True)
class _ChunkShape:
    """What a chunk's parameters and buffer depend on; sizes are a tensor-parallel rank's."""

    num_layers: int
    hidden: int
    query: int
    query_key_value: int
    ffn: int
    vocabulary: int
    is_first: bool
    is_last: bool
    is_tied: bool
    is_pipeline: bool
    is_cut: bool
    """Whether the buffer is cut into buckets: the first chunk's under overlap_grad_reduce."""
    num_shards: int | None
    """None without distributed optimizer."""
    dp_cp_size: int


@lru_cache(maxsize=1024)  # a sweep asks for the same chunks again and again
def _chunk(shape: _ChunkShape) -> ChunkParameters:
    parameters = _chunk_parameters(shape)
    buckets = _buckets(
        parameters,
        bucket_numel=max(40_000_000, 1_000_000 * shape.dp_cp_size) if shape.is_cut else None,
        num_shards=shape.num_shards,
    )
    return ChunkParameters(
        parameters=tuple(parameters), buckets=tuple(buckets), num_shards=shape.num_shards or 1
    )


def _chunk_parameters(shape: _ChunkShape) -> list[Parameter]:
    hidden = shape.hidden
    is_shared = shape.is_tied and shape.is_pipeline
    norm = Parameter(component="norms", numel=hidden)
    layer = [
        norm,
        Parameter(component="attention", numel=shape.query * hidden),
        Parameter(component="attention", numel=shape.query_key_value * hidden),
        norm,
        Parameter(component="mlp", numel=2 * shape.ffn * hidden),
        Parameter(component="mlp", numel=shape.ffn * hidden),
    ]
    parameters = layer * shape.num_layers
    vocabulary = shape.vocabulary * hidden
    if shape.is_first:
        embedding = Parameter(component="embedding", numel=vocabulary, is_shared=is_shared)
        parameters = [embedding, *parameters]
    if shape.is_last:
        parameters = [*parameters, norm]
        if not shape.is_tied or shape.is_pipeline:
            parameters.append(Parameter(component="head", numel=vocabulary, is_shared=is_shared))
    return parameters


def _buckets(
    parameters: Sequence[Parameter], *, bucket_numel: int | None, num_shards: int | None
) -> list[Bucket]:
    """How Megatron cuts a chunk's buffer; `num_shards` is None without distributed optimizer."""
    buckets: list[Bucket] = []
    begin, end = 0, 0
    placed: list[tuple[int, int]] = []

    def close() -> None:
        nonlocal begin, end, placed
        if num_shards is not None:
            end = _multiple(end, math.lcm(num_shards, _BUCKET_ALIGNMENT))
        buckets.append(Bucket(begin=begin, end=end, parameters=tuple(placed)))
        begin, placed = end, []

    for parameter in reversed(parameters):
        alone = parameter.is_shared and num_shards is not None
        if num_shards is not None:
            end = _multiple(end, _PARAMETER_ALIGNMENT)
        if alone and placed:
            close()
        first, end = end, end + parameter.numel
        placed.append((first, end))
        if alone or (bucket_numel is not None and end - begin >= bucket_numel):
            close()
    if placed:
        close()
    return buckets


def _multiple(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
