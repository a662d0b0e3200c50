"""Bytes that each rank sends in a step, by kind, and how they go.

Collectives are counted as rings send them, the least that a rank must send for large messages
(Thakur et al., 2005): of X bytes over p ranks an all-gather or a reduce-scatter (p - 1) / p X, an
all-reduce twice that.
"""

from dataclasses import dataclass
from typing import Literal

from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.activations import MicroBatch, micro_batch
from dsm_engine.planning.parameters import ChunkParameters

Kind = Literal[
    "tp_all_reduce",
    "sp_all_gather",
    "sp_reduce_scatter",
    "cp_all_gather",
    "cp_reduce_scatter",
    "pp_send",
    "dp_all_reduce",
    "dp_reduce_scatter",
    "dp_all_gather",
    "tied_embedding_all_reduce",
]
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one rank sends of one kind in a step."""

    kind: Kind
    payload: float
    """Bytes of the tensors as the whole group has them: the input of an all-reduce or a
    reduce-scatter, the output of an all-gather, the message."""
    calls: int
    group_size: int
    group_stride: int
    """How far apart the group's ranks are."""

    @property
    def sent(self) -> float:
        """Bytes that a rank sends."""
        if self.kind == "pp_send":
            return self.payload
        rounds = 2 if self.kind.endswith("all_reduce") else 1
        return rounds * (self.group_size - 1) / self.group_size * self.payload


@dataclass(frozen=True, kw_only=True)
class LayoutSizes:
    """Group sizes, and how far apart their ranks are, in Megatron's order TP, CP, DP, PP."""

    tp: int
    cp: int
    dp: int
    pp: int

    @property
    def dp_cp(self) -> int:
        """Ranks that hold the same parameters."""
        return self.dp * self.cp


def layout_sizes(parallel: ParallelConfig, world_size: int) -> LayoutSizes:
    """The groups of a world that the layout fits."""
    return LayoutSizes(
        tp=parallel.tensor_model_parallel_size,
        cp=parallel.context_parallel_size,
        dp=world_size // parallel.model_parallel_size,
        pp=parallel.pipeline_model_parallel_size,
    )


def micro_batch_traffic(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    *,
    seq_length: int,
    stage: int,
) -> list[Traffic]:
    """What a rank of the stage sends for one micro-batch, forward and backward."""
    batch = micro_batch(parallel, precision, seq_length)
    num_layers = model.num_layers // sizes.pp
    is_first, is_last = stage == 0, stage == sizes.pp - 1
    traffic: list[Traffic] = []
    if sizes.tp > 1:
        traffic += _tensor_traffic(
            model, parallel, batch, sizes, num_layers, is_first=is_first, is_last=is_last
        )
    if sizes.cp > 1:
        traffic += _context_traffic(model, parallel, batch, sizes, num_layers)
    if sizes.pp > 1:
        vp = parallel.virtual_pipeline_model_parallel_size
        sends = 2 * vp - is_first - is_last
        traffic.append(
            Traffic(
                kind="pp_send",
                payload=sends * batch.rows * model.hidden_size * batch.element,
                calls=sends,
                group_size=sizes.pp,
                group_stride=sizes.tp * sizes.cp * sizes.dp,
            )
        )
    return traffic


def _tensor_traffic(
    model: ModelConfig,
    parallel: ParallelConfig,
    batch: MicroBatch,
    sizes: LayoutSizes,
    num_layers: int,
    *,
    is_first: bool,
    is_last: bool,
) -> list[Traffic]:
    """Shoeybi et al. (2019), section 3; with SP Korthikanti et al. (2022), section 4.2.

    A layer has two regions, attention and MLP; `again` of them run forward twice.
    """
    hidden = batch.tokens * model.hidden_size * batch.element
    again = {"none": 0, "selective": 1, "full": 2}[parallel.recompute]
    losses = 3 * is_last  # the cross-entropy's maximum, sum and own logit
    if not parallel.sequence_parallel:
        wide = (4 + again) * num_layers + is_first + is_last
        gathers = scatters = 0
    else:
        wide = 0
        # Backward passes gather the output's gradient, and the input again for the weight's.
        gathers = (2 + 2 + 2 + again) * num_layers + is_first + 2 * is_last
        scatters = (2 + 2 + again) * num_layers + is_first + is_last

    def over_tp(kind: Kind, payload: float, calls: int) -> Traffic:
        return Traffic(kind=kind, payload=payload, calls=calls, group_size=sizes.tp, group_stride=1)

    reduced = wide * hidden + losses * batch.tokens * _FP32
    traffic = [
        over_tp("tp_all_reduce", reduced, wide + losses),
        over_tp("sp_all_gather", gathers * hidden, gathers),
        over_tp("sp_reduce_scatter", scatters * hidden, scatters),
    ]
    return [part for part in traffic if part.calls]


def _context_traffic(
    model: ModelConfig,
    parallel: ParallelConfig,
    batch: MicroBatch,
    sizes: LayoutSizes,
    num_layers: int,
) -> list[Traffic]:
    """Keys and values of the whole pack are gathered in each layer, and their gradients summed."""
    width = 2 * model.num_query_groups // sizes.tp * model.head_dim
    payload = batch.pack_tokens * width * batch.element
    gathers = num_layers * (2 if parallel.recompute == "full" else 1)

    def over_cp(kind: Kind, calls: int) -> Traffic:
        return Traffic(
            kind=kind,
            payload=calls * payload,
            calls=calls,
            group_size=sizes.cp,
            group_stride=sizes.tp,
        )

    return [over_cp("cp_all_gather", gathers), over_cp("cp_reduce_scatter", num_layers)]


def step_traffic(
    parallel: ParallelConfig,
    precision: Precision,
    sizes: LayoutSizes,
    chunks: tuple[ChunkParameters, ...],
) -> list[Traffic]:
    """What a rank with these chunks sends once a step: gradients, and parameters where sharded."""
    element = 2 if precision == "bf16" else _FP32
    traffic: list[Traffic] = []

    def over_dp(kind: Kind, payload: float) -> Traffic:
        calls = sum(len(chunk.buckets) for chunk in chunks)
        return Traffic(
            kind=kind,
            payload=payload,
            calls=calls,
            group_size=sizes.dp_cp,
            group_stride=sizes.tp,
        )

    if sizes.dp_cp > 1:
        numel = sum(chunk.buffer_numel for chunk in chunks)
        if parallel.use_distributed_optimizer:
            traffic.append(over_dp("dp_reduce_scatter", numel * _FP32))
            traffic.append(over_dp("dp_all_gather", numel * element))
        else:
            traffic.append(over_dp("dp_all_reduce", numel * _FP32))
    if parallel.sequence_parallel:
        norms = sum(chunk.components["norms"] for chunk in chunks)
        traffic.append(
            Traffic(
                kind="tp_all_reduce",
                payload=norms * _FP32,
                calls=len(chunks),
                group_size=sizes.tp,
                group_stride=1,
            )
        )
    shared = sum(chunk.shared_numel for chunk in chunks)
    if shared:
        traffic.append(
            Traffic(
                kind="tied_embedding_all_reduce",
                payload=shared * _FP32,
                calls=1,
                group_size=2,
                group_stride=(sizes.pp - 1) * sizes.tp * sizes.dp_cp,
            )
        )
    return traffic


def merged(traffic: list[Traffic], micro_batches: list[Traffic], num: int) -> dict[Kind, Traffic]:
    """A step's traffic by kind: once `traffic`, `num` times `micro_batches`."""
    parts: dict[Kind, Traffic] = {}
    for part, times in [*((p, 1) for p in traffic), *((p, num) for p in micro_batches)]:
        before = parts.get(part.kind)
        parts[part.kind] = Traffic(
            kind=part.kind,
            payload=times * part.payload + (before.payload if before else 0),
            calls=times * part.calls + (before.calls if before else 0),
            group_size=part.group_size,
            group_stride=part.group_stride,
        )
    return parts
