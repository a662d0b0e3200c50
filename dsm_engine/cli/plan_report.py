"""What `dsm plan` shows."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from dsm_engine.cli.terminal import console
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.cluster import Cluster
from dsm_engine.planning.communication import LayoutSizes
from dsm_engine.planning.plan import Job, Plan
from dsm_engine.planning.sweep import Sweep

_GIB = 1 << 30
_MOST_STAGES = 6  # columns of the memory table
_MEMORY_PARTS = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer states"),
    ("attention_activations", "activations, attention"),
    ("mlp_activations", "activations, MLP"),
    ("norm_activations", "activations, norms"),
    ("pipeline_tensors", "pipeline messages"),
    ("working_set", "working set"),
    ("overhead", "overhead"),
)
_TIME_PARTS = (
    ("matrices", "matrix products"),
    ("attention", "attention"),
    ("recompute", "recompute"),
    ("data_movement", "norms, RoPE, SwiGLU, loss"),
    ("tensor_parallel", "TP communication"),
    ("context_parallel", "CP communication"),
    ("pipeline_sends", "PP messages"),
    ("bubble", "pipeline bubble"),
    ("data_parallel", "gradients and parameters"),
    ("optimizer", "optimizer"),
)


def print_plan(plan: Plan, warnings: Sequence[str]) -> None:
    """Tables of parameters, memory, communication and time, then assumptions and warnings."""
    show = console()
    _print_head(show, plan)
    show.print()
    show.print(_parameters_table(plan))
    show.print()
    show.print(_memory_table(plan))
    _print_memory(show, plan)
    show.print()
    show.print(_traffic_table(plan))
    show.print()
    show.print(_time_table(plan))
    _print_time(show, plan)
    show.print()
    _print_assumptions(show, plan.cluster, plan.job)
    for warning in warnings:
        show.print(f"warning: {warning}", markup=False)


def print_sweep(result: Sweep, job: Job, cluster: Cluster, *, top: int) -> None:
    """The fastest layouts that fit, the recipe's own marked."""
    show = console()
    table = _table(
        ">TP",
        ">CP",
        ">DP",
        ">PP",
        ">VP",
        "recompute",
        ">micro",
        ">step s",
        ">slots/s/GPU",
        ">GiB",
        "",
    )
    slots = job.global_batch_size * job.work.seq_length
    for layout in result.ranked[:top]:
        sizes, parallel = layout.sizes, layout.parallel
        seconds = layout.time.total
        table.add_row(
            *(str(size) for size in (sizes.tp, sizes.cp, sizes.dp, sizes.pp)),
            str(parallel.virtual_pipeline_model_parallel_size),
            parallel.recompute,
            str(layout.num_micro_batches),
            _seconds(seconds),
            f"{slots / seconds / cluster.world_size:,.0f}",
            f"{layout.worst.total / _GIB:.1f}",
            "*" if parallel == job.parallel else "",
        )
    have = cluster.device.memory / _GIB
    show.print(
        f"{result.num_valid} layouts of {cluster.world_size} GPUs are valid, {result.num_fitting} "
        f"fit into {have:.1f} GiB; the fastest of each TP, CP, PP and VP:"
    )
    if result.ranked:
        show.print(table)
        show.print("* the recipe's own layout; GiB: of the worst rank")
    elif result.smallest is None:
        show.print("none is valid: the world, the batch and the model's sizes share no divisors")
    else:
        show.print(
            f"the smallest needs {result.smallest.worst.total / _GIB:.1f} GiB: "
            f"{_layout_words(result.smallest.parallel, result.smallest.sizes)}"
        )
    if job.work.alignment == 1:
        show.print("CP is not tried: data.alignment is 1, 2 x CP lets documents be shared")
    _print_assumptions(show, cluster, job)


def _print_head(show: Console, plan: Plan) -> None:
    job, layout, work = plan.job, plan.layout, plan.job.work
    cluster = plan.cluster
    show.print(
        f"{cluster.world_size} x {cluster.device.name} ({cluster.num_nodes} x "
        f"{cluster.gpus_per_node}), {job.precision}: "
        f"{_layout_words(layout.parallel, layout.sizes)}",
        markup=False,
    )
    slots = job.global_batch_size * work.seq_length
    show.print(
        f"a step: {job.global_batch_size} packs of {work.seq_length:,} slots = {slots:,} slots, "
        f"{job.global_batch_size * work.tokens:,.0f} tokens of documents (fill {work.fill:.1%}); "
        f"{layout.num_micro_batches} micro-batches a data-parallel rank; "
        f"{plan.flops.total:.4g} FLOPs"
    )
    if plan.steps_per_epoch is None or plan.epochs is None:
        show.print(f"{job.steps} steps; how many epochs is not known (--assume-documents)")
    else:
        show.print(
            f"{job.steps} steps; an epoch of {work.packs_per_epoch:,} packs has "
            f"{plan.steps_per_epoch:,.1f}, so {plan.epochs:.2f} epochs"
        )
    for remark in job.remarks:
        show.print(remark, markup=False)


def _layout_words(parallel: ParallelConfig, sizes: LayoutSizes) -> str:
    words = [f"TP {sizes.tp}", f"CP {sizes.cp}", f"DP {sizes.dp}", f"PP {sizes.pp}"]
    if parallel.virtual_pipeline_model_parallel_size > 1:
        words.append(f"VP {parallel.virtual_pipeline_model_parallel_size}")
    for name, is_on in (
        ("SP", parallel.sequence_parallel),
        ("distributed optimizer", parallel.use_distributed_optimizer),
        ("overlapped gradients", parallel.overlap_grad_reduce),
        ("overlapped parameters", parallel.overlap_param_gather),
        ("optimizer on the host", parallel.optimizer_cpu_offload),
    ):
        if is_on:
            words.append(name)
    return ", ".join([*words, f"recompute {parallel.recompute}"])


def _parameters_table(plan: Plan) -> Table:
    """The whole model's, and those of a rank of the stage that needs most."""
    worst = plan.layout.worst
    table = _table("parameters", ">model", f">a rank of stage {worst.stage}")
    for component, count in plan.components.items():
        table.add_row(component, f"{count:,}", f"{worst.components[component]:,}")
    table.add_section()
    table.add_row("all", f"{plan.job.model.num_parameters:,}", f"{worst.num_parameters:,}")
    return table


def _memory_table(plan: Plan) -> Table:
    """A column a stage; of long pipelines the first two, the last, and the one with most."""
    stages, worst = plan.layout.stages, plan.layout.worst
    if len(stages) > _MOST_STAGES:
        stages = [stage for stage in stages if stage in (*stages[:2], worst, stages[-1])]
    table = _table("GiB a rank", *(f">stage {stage.stage}" for stage in stages))
    for part, name in _MEMORY_PARTS:
        values = [getattr(stage, part) for stage in stages]
        if any(values):
            table.add_row(name, *(f"{value / _GIB:.2f}" for value in values))
    table.add_section()
    table.add_row("all", *(f"{stage.total / _GIB:.2f}" for stage in stages))
    return table


def _print_memory(show: Console, plan: Plan) -> None:
    worst, device = plan.layout.worst, plan.cluster.device
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    show.print(
        f"worst rank: stage {worst.stage}, {worst.total / _GIB:.1f} of "
        f"{device.memory / _GIB:.1f} GiB: {verdict}"
    )
    if worst.host_optimizer:
        ranks = min(plan.cluster.gpus_per_node, plan.cluster.world_size)
        show.print(
            f"host memory for the optimizer: {worst.host_optimizer / _GIB:.1f} GiB a rank, "
            f"{ranks * worst.host_optimizer / _GIB:.0f} GiB a node"
        )


def _traffic_table(plan: Plan) -> Table:
    table = _table(
        f"sent by a rank of stage {plan.traffic_stage}", ">group", ">calls", ">GB a step"
    )
    for kind, part in plan.traffic.items():
        name = kind.replace("_", "-").replace("-", " ", 1)
        table.add_row(name, str(part.group_size), f"{part.calls:,}", f"{part.sent / 1e9:,.2f}")
    if not plan.traffic:
        table.add_row("nothing: one rank", "", "", "")
    return table


def _time_table(plan: Plan) -> Table:
    time = plan.layout.time
    table = _table("predicted step", ">s", ">share")
    for part, name in _TIME_PARTS:
        seconds = getattr(time, part)
        if seconds:
            table.add_row(name, _seconds(seconds), f"{seconds / time.total:.1%}")
    table.add_section()
    table.add_row("all", _seconds(time.total), "")
    return table


def _print_time(show: Console, plan: Plan) -> None:
    job, time = plan.job, plan.layout.time
    slots = job.global_batch_size * job.work.seq_length / time.total
    show.print(
        f"predicted: {slots:,.0f} slots/s, {slots / plan.cluster.world_size:,.0f} a GPU, MFU "
        f"{plan.mfu:.1%}; {job.steps} steps in {_duration(job.steps * time.total)}"
    )


def _print_assumptions(show: Console, cluster: Cluster, job: Job) -> None:
    assume, device = cluster.assumptions, cluster.device
    show.print(
        f"assumed, not measured: matrix products at {assume.matrix_efficiency:.0%} of peak, "
        f"attention {assume.attention_efficiency:.0%}, memory {assume.memory_efficiency:.0%} of "
        f"{device.memory_bandwidth / 1e12:.2f} TB/s, network {assume.network_efficiency:.0%} of "
        f"{device.intra_bandwidth / 1e9:.0f} GB/s in a node and "
        f"{assume.inter_bandwidth / 1e9:.0f} GB/s a GPU between nodes, "
        f"{assume.latency * 1e6:.0f} us a collective, {assume.overhead / _GIB:.1f} GiB of "
        f"overhead; communication of TP, CP and PP hides behind nothing"
    )
    if job.parallel.optimizer_cpu_offload:
        show.print(
            f"and {assume.host_step_bandwidth / 1e9:.0f} GB/s of a node's host memory, "
            f"{device.host_bandwidth / 1e9:.0f} GB/s to it from each GPU"
        )


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def _table(*names: str) -> Table:
    """A table with these columns, numbers (>) to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in names:
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", no_wrap=True)
    return table
