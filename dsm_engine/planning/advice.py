"""What of a plan a person should look at: one sentence each, with what to do."""

from collections.abc import Iterator

from dsm_engine.planning.plan import Plan

MIN_STEPS = 100
"""Fewer optimizer steps than this hardly fine-tune a model."""
MIN_FILL = 0.9
MAX_EPOCHS = 10.0
MAX_BUBBLE = 0.1
"""Of a step's time; likewise below."""
MAX_EXCHANGE = 0.1
MAX_TENSOR_PARALLEL = 0.3
MIN_HEADROOM = 0.05
"""Share of device memory left over; the model of memory is not better than that."""


def warnings_of(plan: Plan) -> list[str]:
    """Every warning, most serious first; empty where nothing stands out."""
    return [*_memory(plan), *_steps(plan), *_packs(plan), *_layout(plan)]


def _memory(plan: Plan) -> Iterator[str]:
    worst, memory = plan.layout.worst, plan.cluster.device.memory
    need, have = worst.total / 2**30, memory / 2**30
    where = f"a rank of pipeline stage {worst.stage}"
    if not plan.fits:
        yield (
            f"does not fit: {where} needs {need:.1f} GiB, a {plan.cluster.device.name} has "
            f"{have:.1f}; more TP or PP, parallel.recompute, or see --sweep"
        )
    elif worst.total > (1 - MIN_HEADROOM) * memory:
        yield (
            f"fits barely: {where} needs {need:.1f} of {have:.1f} GiB, which is within what these "
            f"formulas can tell"
        )
    if plan.fits and plan.layout.parallel.recompute != "none":
        again = plan.layout.time.recompute / plan.layout.time.total
        if again > 0.05:
            yield (
                f"recompute={plan.layout.parallel.recompute} takes {again:.0%} of a step; --sweep "
                f"shows layouts that do without, where there are any"
            )


def _steps(plan: Plan) -> Iterator[str]:
    job = plan.job
    if job.steps < MIN_STEPS:
        yield (
            f"too few optimizer steps: {job.steps}; lower training.global_batch_size "
            f"({job.global_batch_size}) or train for more"
        )
    per_epoch = plan.steps_per_epoch
    if per_epoch is not None and per_epoch < MIN_STEPS / MAX_EPOCHS:
        yield (
            f"an epoch has {per_epoch:.1f} steps: packing leaves few, so each moves the weights by "
            f"much of the data; lower training.global_batch_size"
        )
    if plan.epochs is not None and plan.epochs > MAX_EPOCHS:
        yield f"every document is trained on {plan.epochs:.1f} times; lower training.steps"


def _packs(plan: Plan) -> Iterator[str]:
    work = plan.job.work
    if work.is_assumed or work.fill >= MIN_FILL:
        return
    better = ""
    if work.best_fill is not None and work.best_fill > work.fill + 0.01:
        better = f"; data.strategy=best_fit would fill {work.best_fill:.1%}"
    yield f"poor fill: {work.fill:.1%} of the slots hold tokens of documents{better}"


def _layout(plan: Plan) -> Iterator[str]:
    layout, cluster, time = plan.layout, plan.cluster, plan.layout.time
    parallel, sizes = layout.parallel, layout.sizes
    if time.bubble > MAX_BUBBLE * time.total:
        yield (
            f"the pipeline's bubble is {time.bubble / time.total:.0%} of a step "
            f"({layout.num_micro_batches} micro-batches a rank, PP {sizes.pp}, VP "
            f"{parallel.virtual_pipeline_model_parallel_size}); less PP, more VP, or fewer "
            f"data-parallel ranks"
        )
    if sizes.tp > 1 and not cluster.within_a_node(size=sizes.tp, stride=1):
        yield (
            f"TP {sizes.tp} goes across nodes of {cluster.gpus_per_node} GPUs, through the slow "
            f"network in every layer; keep it within a node"
        )
    if time.tensor_parallel > MAX_TENSOR_PARALLEL * time.total:
        yield (
            f"TP {sizes.tp} spends {time.tensor_parallel / time.total:.0%} of a step on "
            f"communication; less TP where memory allows"
        )
    if sizes.tp > 1 and not parallel.sequence_parallel:
        yield (
            "sequence_parallel is off beside TP: it moves as much and keeps fewer activations "
            "(parallel.sequence_parallel=true)"
        )
    if sizes.dp_cp > 1 and not parallel.use_distributed_optimizer:
        yield (
            f"use_distributed_optimizer is off: each of the {sizes.dp_cp} data-parallel ranks "
            f"keeps all optimizer states"
        )
    if time.data_parallel > MAX_EXCHANGE * time.total:
        overlap = parallel.overlap_grad_reduce and parallel.overlap_param_gather
        advice = "" if overlap else "; set overlap_grad_reduce and overlap_param_gather"
        yield (
            f"exchanging gradients and parameters is {time.data_parallel / time.total:.0%} of a "
            f"step: {layout.num_micro_batches} micro-batches a data-parallel rank are few{advice}"
        )
