"""How long a step takes, predicted: a roofline of its parts under the cluster's assumptions."""

from dataclasses import dataclass

from dsm_engine.errors import DsmError
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.model.flops import TrainingFlops, peak_flops
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.activations import micro_batch
from dsm_engine.planning.cluster import Cluster
from dsm_engine.planning.communication import (
    Kind,
    LayoutSizes,
    Traffic,
    micro_batch_traffic,
    step_traffic,
)
from dsm_engine.planning.memory import static_bytes
from dsm_engine.planning.parameters import stage_chunks

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by part; they add up to `total`."""

    matrices: float
    """Linears and head, of the slowest pipeline stage, forward and backward."""
    attention: float
    recompute: float
    data_movement: float
    """Norms, RoPE, SwiGLU, residuals, the loss: bound by memory."""
    tensor_parallel: float
    context_parallel: float
    pipeline_sends: float
    bubble: float
    """Of the pipeline: stages that wait."""
    data_parallel: float
    """Gradients and parameters, what of it does not go on behind the passes."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return (
            self.matrices
            + self.attention
            + self.recompute
            + self.data_movement
            + self.tensor_parallel
            + self.context_parallel
            + self.pipeline_sends
            + self.bubble
            + self.data_parallel
            + self.optimizer
        )


@dataclass(frozen=True, kw_only=True)
class _StageTime:
    """Seconds of one micro-batch on one stage, forward and backward."""

    matrices: float
    attention: float
    recompute: float
    data_movement: float
    tensor_parallel: float
    context_parallel: float
    pipeline_sends: float

    @property
    def total(self) -> float:
        return (
            self.matrices
            + self.attention
            + self.recompute
            + self.data_movement
            + self.tensor_parallel
            + self.context_parallel
            + self.pipeline_sends
        )


def predict_step_time(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    cluster: Cluster,
    *,
    flops_per_pack: TrainingFlops,
    seq_length: int,
    num_micro_batches: int,
) -> StepTime:
    """The parts of a step of `num_micro_batches` packs a data-parallel rank.

    The slowest stage works through all micro-batches; filling and draining the pipeline passes each
    other stage once, over VP (Narayanan et al., 2021, section 2.2: (PP - 1) / (VP * m) of the work
    where stages are even).
    """
    stages = [
        _stage_time(
            model,
            parallel,
            precision,
            sizes,
            cluster,
            flops=flops_per_pack,
            seq_length=seq_length,
            stage=stage,
        )
        for stage in _distinct_stages(sizes.pp)
    ]
    middle = sizes.pp - len(stages)
    slowest = max(stages, key=lambda stage: stage.total)
    all_stages = sum(stage.total for stage in stages)
    if middle:
        all_stages += middle * stages[1].total
    data_parallel, optimizer = _once_a_step(
        model, parallel, precision, sizes, cluster, one_pass=slowest.total
    )
    vp = parallel.virtual_pipeline_model_parallel_size
    return StepTime(
        matrices=num_micro_batches * slowest.matrices,
        attention=num_micro_batches * slowest.attention,
        recompute=num_micro_batches * slowest.recompute,
        data_movement=num_micro_batches * slowest.data_movement,
        tensor_parallel=num_micro_batches * slowest.tensor_parallel,
        context_parallel=num_micro_batches * slowest.context_parallel,
        pipeline_sends=num_micro_batches * slowest.pipeline_sends,
        bubble=(all_stages - slowest.total) / vp,
        data_parallel=data_parallel,
        optimizer=optimizer,
    )


def peak_of(cluster: Cluster, precision: Precision) -> float:
    """Dense operations a second of the cluster's device."""
    peak = peak_flops(cluster.device.name.replace("-", " "), precision)
    if peak is None:
        raise DsmError(f"device {cluster.device.name!r} has no peak in the table")
    return peak


def _distinct_stages(pp: int) -> list[int]:
    """First, one of the middle, last: the middle ones are alike."""
    return sorted({0, min(1, pp - 1), pp - 1})


def _stage_time(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    cluster: Cluster,
    *,
    flops: TrainingFlops,
    seq_length: int,
    stage: int,
) -> _StageTime:
    assume = cluster.assumptions
    peak = peak_of(cluster, precision)
    is_last = stage == sizes.pp - 1
    share = 1 / (sizes.tp * sizes.cp)
    linears = flops.linears / sizes.pp * share
    attention = flops.attention / sizes.pp * share
    head = flops.head * share if is_last else 0.0
    traffic = micro_batch_traffic(
        model, parallel, precision, sizes, seq_length=seq_length, stage=stage
    )

    def seconds(prefixes: tuple[str, ...]) -> float:
        return sum(
            (_seconds(part, cluster) for part in traffic if part.kind.startswith(prefixes)), 0.0
        )

    matrix_time = 1 / (peak * assume.matrix_efficiency)
    attention_time = 1 / (peak * assume.attention_efficiency)
    again = 0.0  # forward passes are a third
    if parallel.recompute == "full":
        again = (linears * matrix_time + attention * attention_time) / 3
    elif parallel.recompute == "selective":
        again = linears * _mlp_share(model) * matrix_time / 3
    moved = _moved_bytes(model, parallel, precision, sizes, seq_length, is_last=is_last)
    return _StageTime(
        matrices=(linears + head) * matrix_time,
        attention=attention * attention_time,
        recompute=again,
        data_movement=moved / (cluster.device.memory_bandwidth * assume.memory_efficiency),
        tensor_parallel=seconds(("tp_", "sp_")),
        context_parallel=seconds(("cp_",)),
        pipeline_sends=seconds(("pp_",)),
    )


def _mlp_share(model: ModelConfig) -> float:
    heads = model.num_attention_heads + model.num_query_groups
    mlp = 3 * model.hidden_size * model.ffn_hidden_size
    return mlp / (mlp + 2 * model.hidden_size * model.head_dim * heads)


def _moved_bytes(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    seq_length: int,
    *,
    is_last: bool,
) -> float:
    """Read and written outside matrix products and attention, by one micro-batch on one rank.

    Forward, in numbers a token and layer: two norms (4 h), two residual sums (6 h), RoPE of queries
    and keys (2 (a + g) d), SwiGLU (3 f); backward twice that. Logits: about 24 bytes each, forward
    and backward. Weight gradients are added to the fp32 buffer: 2 + 4 + 4 bytes each.
    """
    batch = micro_batch(parallel, precision, seq_length)
    tp, num_layers = sizes.tp, model.num_layers / sizes.pp
    heads = (model.num_attention_heads + model.num_query_groups) * model.head_dim
    numbers = 10 * model.hidden_size * batch.rows
    numbers += (2 * heads + 3 * model.ffn_hidden_size) / tp * batch.tokens
    passes = 4 if parallel.recompute == "full" else 3
    layers = num_layers * passes * batch.element * numbers
    per_layer = 2 * model.hidden_size * heads + 3 * model.hidden_size * model.ffn_hidden_size
    weights = num_layers * per_layer / tp
    vocabulary = model.vocab_size / tp
    if is_last:
        weights += vocabulary * model.hidden_size
        layers += 24 * batch.tokens * vocabulary
    return layers + weights * (batch.element + 2 * _FP32)


def _once_a_step(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    cluster: Cluster,
    *,
    one_pass: float,
) -> tuple[float, float]:
    """Seconds of exchanging gradients and parameters, and of the optimizer, on the slowest stage.

    What overlaps hides behind one micro-batch: gradients behind its backward pass, two thirds of
    it, parameters behind its forward pass.
    """
    slowest_exchange, slowest_step = 0.0, 0.0
    hidden_by_kind: dict[Kind, float] = {
        "dp_reduce_scatter": parallel.overlap_grad_reduce * one_pass * 2 / 3,
        "dp_all_reduce": parallel.overlap_grad_reduce * one_pass * 2 / 3,
        "dp_all_gather": parallel.overlap_param_gather * one_pass / 3,
    }
    for stage in _distinct_stages(sizes.pp):
        chunks = stage_chunks(model, parallel, stage=stage, dp_cp_size=sizes.dp_cp)
        exchange = sum(
            max(0.0, _seconds(part, cluster) - hidden_by_kind.get(part.kind, 0.0))
            for part in step_traffic(parallel, precision, sizes, chunks)
        )
        shard = static_bytes(chunks, parallel, precision).shard_numel
        slowest_exchange = max(slowest_exchange, exchange)
        slowest_step = max(slowest_step, _optimizer_seconds(shard, parallel, precision, cluster))
    return slowest_exchange, slowest_step


def _optimizer_seconds(
    shard_numel: int, parallel: ParallelConfig, precision: Precision, cluster: Cluster
) -> float:
    """Reads gradient, weight and moments, writes the last three and the bf16 weight."""
    moved = 7 * _FP32 + (2 if precision == "bf16" else 0)
    if not parallel.optimizer_cpu_offload:
        bandwidth = cluster.device.memory_bandwidth * cluster.assumptions.memory_efficiency
        return shard_numel * moved / bandwidth
    crossing = shard_numel * 2 * _FP32 / cluster.device.host_bandwidth
    on_host = shard_numel * moved * cluster.gpus_per_node / cluster.assumptions.host_step_bandwidth
    return crossing + on_host


def _seconds(part: Traffic, cluster: Cluster) -> float:
    bandwidth = cluster.bandwidth(size=part.group_size, stride=part.group_stride)
    if part.kind == "pp_send" and not cluster.within_a_node(
        size=part.group_size, stride=part.group_stride
    ):
        assume = cluster.assumptions  # one message goes through one card
        bandwidth = min(bandwidth, assume.inter_bandwidth * assume.network_efficiency)
    return part.sent / bandwidth + part.calls * cluster.assumptions.latency
