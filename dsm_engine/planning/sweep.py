"""Every sensible layout of a job on a cluster, ranked by predicted step time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsm_engine.parallel.config import ParallelConfig, Recompute
from dsm_engine.planning.cluster import Cluster
from dsm_engine.planning.plan import Job, LayoutPlan, plan_layout

_MODES: tuple[Recompute, ...] = ("none", "selective", "full")
_MAX_CP = 8


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep found."""

    ranked: list[LayoutPlan]
    """Those that fit, fastest first; of one TP, PP, VP and CP only the fastest recompute mode."""
    num_valid: int
    """Layouts without mistakes."""
    num_fitting: int
    smallest: LayoutPlan | None
    """The layout whose worst rank needs least memory; None where no layout is valid."""

    def to_dict(self, top: int) -> dict[str, Any]:
        """The first `top` layouts as JSON has them; bytes and seconds."""
        return {
            "num_valid": self.num_valid,
            "num_fitting": self.num_fitting,
            "layouts": [
                {
                    "parallel": layout.parallel.model_dump(mode="json"),
                    "dp": layout.sizes.dp,
                    "micro_batches": layout.num_micro_batches,
                    "step_time": layout.time.total,
                    "memory": layout.worst.total,
                }
                for layout in self.ranked[:top]
            ],
        }


def sweep(job: Job, cluster: Cluster) -> Sweep:
    """Tries TP, PP, VP, CP and recompute; what else the recipe's `parallel` says is kept, but
    SP follows TP, and what needs the distributed optimizer is on where that is.

    CP above 1 is tried where data.alignment allows it: another alignment is another set of packs.
    """
    fitting: list[LayoutPlan] = []
    smallest: LayoutPlan | None = None
    num_valid = 0
    for parallel in _candidates(job, cluster.world_size):
        if job.mistakes(parallel, cluster.world_size):
            continue
        layout = plan_layout(job, parallel, cluster)
        num_valid += 1
        if smallest is None or layout.worst.total < smallest.worst.total:
            smallest = layout
        if layout.worst.total <= cluster.device.memory:
            fitting.append(layout)
    fitting.sort(key=lambda layout: (layout.time.total, layout.worst.total))
    best: dict[tuple[int, ...], LayoutPlan] = {}
    for layout in fitting:
        vp = layout.parallel.virtual_pipeline_model_parallel_size
        sizes = layout.sizes
        best.setdefault((sizes.tp, sizes.pp, vp, sizes.cp), layout)
    return Sweep(
        ranked=list(best.values()),
        num_valid=num_valid,
        num_fitting=len(fitting),
        smallest=smallest,
    )


def _candidates(job: Job, world_size: int) -> Iterator[ParallelConfig]:
    base = job.parallel
    for tp in _divisors(job.model.num_query_groups):
        for pp in _divisors(job.model.num_layers):
            for cp in (1, 2, 4, _MAX_CP):
                if world_size % (tp * pp * cp):
                    continue
                chunks = _divisors(job.model.num_layers // pp) if pp > 1 else [1]
                for vp in chunks:
                    for recompute in _MODES:
                        yield base.model_copy(
                            update={
                                "tensor_model_parallel_size": tp,
                                "pipeline_model_parallel_size": pp,
                                "virtual_pipeline_model_parallel_size": vp,
                                "context_parallel_size": cp,
                                "sequence_parallel": tp > 1,
                                "recompute": recompute,
                            }
                        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
