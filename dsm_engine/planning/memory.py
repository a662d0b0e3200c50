"""Bytes each rank needs, by pipeline stage: ranks of one stage need equally much."""

from collections.abc import Sequence
from dataclasses import dataclass

from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.activations import (
    MicroBatch,
    head_activations,
    layer_activations,
    micro_batch,
    micro_batches_in_flight,
    mlp_interior,
)
from dsm_engine.planning.parameters import (
    COMPONENTS,
    ChunkParameters,
    Component,
    stage_chunks,
)

_FP32 = 4
_MOMENTS = 2 * _FP32  # Adam's two, fp32


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """What each rank of one pipeline stage holds, in bytes."""

    stage: int
    num_parameters: int
    components: dict[Component, int]
    """Parameters by component."""
    weights: int
    gradients: int
    """The fp32 buffer micro-batches are summed in."""
    optimizer: int
    """Main weights (bf16 only) and moments, of the rank with the largest shard."""
    attention_activations: int
    """Kept by all micro-batches in flight; the next ones likewise."""
    mlp_activations: int
    norm_activations: int
    pipeline_tensors: int
    """Sent and received hidden states."""
    micro_batches_in_flight: int
    """Forward passes of one chunk that wait for their backward pass."""
    working_set: int
    """Most that a moment needs beside all that: logits and loss, or a layer computed again and its
    gradients; or, behind the last micro-batch, the optimizer's temporaries where those exceed the
    activations."""
    overhead: int
    """CUDA context, communication buffers, fragmentation: an assumption."""
    host_optimizer: int
    """In host memory: optimizer_cpu_offload."""

    @property
    def activations(self) -> int:
        """Kept until the backward pass."""
        return (
            self.attention_activations
            + self.mlp_activations
            + self.norm_activations
            + self.pipeline_tensors
        )

    @property
    def static(self) -> int:
        """What does not change with the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Device memory of a rank at its peak."""
        return self.static + self.activations + self.working_set + self.overhead


def memory_by_stage(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    *,
    seq_length: int,
    num_micro_batches: int,
    dp_size: int,
    overhead: int,
    on_cpu: bool = False,
) -> list[StageMemory]:
    """Every pipeline stage's memory. The layout must fit the model (`layout_mistakes`).

    `on_cpu` counts activations as in `layer_activations`.
    """
    return [
        _stage_memory(
            model,
            parallel,
            precision,
            stage=stage,
            batch=micro_batch(parallel, precision, seq_length),
            num_micro_batches=num_micro_batches,
            dp_cp_size=dp_size * parallel.context_parallel_size,
            overhead=overhead,
            on_cpu=on_cpu,
        )
        for stage in range(parallel.pipeline_model_parallel_size)
    ]


def worst_stage(stages: Sequence[StageMemory]) -> StageMemory:
    """The stage whose ranks need most."""
    return max(stages, key=lambda stage: stage.total)


@dataclass(frozen=True, kw_only=True)
class StaticBytes:
    """What does not change with the batch."""

    weights: int
    gradients: int
    optimizer: int
    host_optimizer: int
    shard_numel: int
    """Elements whose optimizer state a rank holds."""


def static_bytes(
    chunks: Sequence[ChunkParameters],
    parallel: ParallelConfig,
    precision: Precision,
    *,
    shard: int | None = None,
) -> StaticBytes:
    """Weights, gradients and optimizer states of a rank with these chunks.

    `shard` is the rank's place among those that share the optimizer's states; None stands for the
    one with most.
    """
    element = 2 if precision == "bf16" else _FP32
    held = sum(chunk.numel for chunk in chunks)
    if parallel.use_distributed_optimizer:
        held = sum(chunk.buffer_numel for chunk in chunks)
    shards = sum(
        chunk.largest_shard_numel if shard is None else chunk.shard_numel(shard) for chunk in chunks
    )
    main_weight = _FP32 if precision == "bf16" else 0
    state, host_state = main_weight + _MOMENTS, 0
    if parallel.optimizer_cpu_offload:
        # On the host: weight, gradient and moments. The main weights' device copy stays.
        state, host_state = main_weight, 2 * _FP32 + _MOMENTS
    return StaticBytes(
        weights=element * held,
        gradients=_FP32 * held,
        optimizer=state * shards,
        host_optimizer=host_state * shards,
        shard_numel=shards,
    )


def _stage_memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    *,
    stage: int,
    batch: MicroBatch,
    num_micro_batches: int,
    dp_cp_size: int,
    overhead: int,
    on_cpu: bool,
) -> StageMemory:
    pp = parallel.pipeline_model_parallel_size
    is_last = stage == pp - 1
    chunks = stage_chunks(model, parallel, stage=stage, dp_cp_size=dp_cp_size)
    static = static_bytes(chunks, parallel, precision)
    in_flight = micro_batches_in_flight(parallel, stage=stage, num_micro_batches=num_micro_batches)
    layers = in_flight * (model.num_layers // (pp * parallel.virtual_pipeline_model_parallel_size))
    kept = layer_activations(model, parallel, batch, recompute=parallel.recompute, on_cpu=on_cpu)
    head = 0
    if is_last:  # and the losses of all tokens of the step, which a fault's report names
        losses = _FP32 * batch.tokens * num_micro_batches
        head = head_activations(model, parallel, batch).kept + losses
    tensor = batch.rows * model.hidden_size * batch.element
    activations = layers * kept.total + head
    pipeline = 0 if pp == 1 else (in_flight + 2) * tensor
    return StageMemory(
        stage=stage,
        num_parameters=sum(chunk.numel for chunk in chunks),
        components={
            component: sum(chunk.components[component] for chunk in chunks)
            for component in COMPONENTS
        },
        weights=static.weights,
        gradients=static.gradients,
        optimizer=static.optimizer,
        attention_activations=layers * kept.attention,
        mlp_activations=layers * kept.mlp,
        norm_activations=layers * kept.norms + head,
        pipeline_tensors=pipeline,
        micro_batches_in_flight=in_flight,
        working_set=max(
            pass_working_set(model, parallel, batch, is_last=is_last, on_cpu=on_cpu),
            _step_working_set(parallel, static.shard_numel) - activations - pipeline,
        ),
        overhead=overhead,
        host_optimizer=static.host_optimizer,
    )


def pass_working_set(
    model: ModelConfig,
    parallel: ParallelConfig,
    batch: MicroBatch,
    *,
    is_last: bool,
    on_cpu: bool = False,
) -> int:
    """Most that forward and backward passes need beside what they keep; `on_cpu` as in
    `layer_activations`."""
    tp = parallel.tensor_model_parallel_size
    gathered = batch.tokens * model.hidden_size * batch.element
    none = layer_activations(model, parallel, batch, recompute="none", on_cpu=on_cpu)
    mlp = mlp_interior(model, parallel, batch, on_cpu=on_cpu)
    again = {"none": 0, "selective": mlp, "full": none.total}[parallel.recompute]
    # The most is in the MLP's backward pass: the gradient of the residual stream stands beside it,
    # and then those of the down projection (its output's, its input's, its weight's), of SwiGLU, or
    # of the gate and up projections. What the next was computed from is free by then.
    width = batch.tokens * model.ffn_hidden_size // tp * batch.element
    weight = model.ffn_hidden_size // tp * model.hidden_size * batch.element
    swiglu = width if on_cpu else 2 * width
    backward = again + gathered
    backward += max(gathered + width + weight, swiglu, gathered + 2 * weight - width)
    if not is_last:
        return backward
    vocabulary = model.vocab_size // tp
    gradient = batch.tokens * vocabulary * batch.element  # of the logits
    head_weight = vocabulary * model.hidden_size * batch.element
    logits = head_activations(model, parallel, batch).logits
    return max(backward, logits, gradient + gathered + head_weight)


def _step_working_set(parallel: ParallelConfig, shard_numel: int) -> int:
    """torch's AdamW has roots of all second moments at once; fused ones have not."""
    return 0 if parallel.optimizer_cpu_offload else _FP32 * shard_numel
