"""Everything `dsm plan` says of one recipe on one cluster."""

from dataclasses import asdict, dataclass
from typing import Any

from dsm_engine.errors import DsmError
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.model.flops import TrainingFlops, mfu
from dsm_engine.parallel.config import ParallelConfig, Workload, layout_mistakes
from dsm_engine.planning.cluster import Cluster
from dsm_engine.planning.communication import (
    Kind,
    LayoutSizes,
    Traffic,
    layout_sizes,
    merged,
    micro_batch_traffic,
    step_traffic,
)
from dsm_engine.planning.memory import StageMemory, memory_by_stage, worst_stage
from dsm_engine.planning.parameters import Component, stage_chunks
from dsm_engine.planning.step_time import StepTime, peak_of, predict_step_time
from dsm_engine.planning.work import AssumedData, PackWork, pack_work, planned_model
from dsm_engine.training.config import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be laid out: a recipe with its model and its mean pack looked up."""

    model: ModelConfig
    precision: Precision
    parallel: ParallelConfig
    work: PackWork
    global_batch_size: int
    steps: int
    remarks: tuple[str, ...]
    """What could not be looked at."""

    def mistakes(self, parallel: ParallelConfig, world_size: int) -> list[str]:
        """Why a layout cannot run the job; empty where it can."""
        model = self.model
        return layout_mistakes(
            parallel,
            Workload(
                num_layers=model.num_layers,
                hidden_size=model.hidden_size,
                num_attention_heads=model.num_attention_heads,
                num_query_groups=model.num_query_groups,
                ffn_hidden_size=model.ffn_hidden_size,
                vocab_size=model.vocab_size,
                seq_length=self.work.seq_length,
                alignment=self.work.alignment,
                global_batch_size=self.global_batch_size,
            ),
            world_size=world_size,
        )


@dataclass(frozen=True, kw_only=True)
class LayoutPlan:
    """One layout of a job on a cluster."""

    parallel: ParallelConfig
    sizes: LayoutSizes
    num_micro_batches: int
    """Of a data-parallel rank, a step."""
    stages: list[StageMemory]
    time: StepTime

    @property
    def worst(self) -> StageMemory:
        """The stage whose ranks need most memory."""
        return worst_stage(self.stages)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One recipe on one cluster."""

    job: Job
    cluster: Cluster
    layout: LayoutPlan
    components: dict[Component, int]
    """Parameters of the whole model."""
    flops: TrainingFlops
    """Of a step, all ranks."""
    traffic: dict[Kind, Traffic]
    """Of a step, of a rank of the stage that sends most."""
    traffic_stage: int

    @property
    def fits(self) -> bool:
        """Whether the worst rank's memory is within the device's."""
        return self.layout.worst.total <= self.cluster.device.memory

    @property
    def steps_per_epoch(self) -> float | None:
        """None where the number of documents is not known."""
        packs = self.job.work.packs_per_epoch
        return None if packs is None else packs / self.job.global_batch_size

    @property
    def epochs(self) -> float | None:
        """Passes through the data in all steps."""
        return None if self.steps_per_epoch is None else self.job.steps / self.steps_per_epoch

    @property
    def mfu(self) -> float:
        """Predicted, by `dsm_engine.model.flops`."""
        return mfu(
            self.flops.total,
            self.layout.time.total,
            self.cluster.world_size,
            peak_of(self.cluster, self.job.precision),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; bytes, seconds, operations."""
        job, layout, work = self.job, self.layout, self.job.work
        slots = job.global_batch_size * work.seq_length
        return {
            "world_size": self.cluster.world_size,
            "cluster": asdict(self.cluster),
            "parallel": layout.parallel.model_dump(mode="json"),
            "groups": asdict(layout.sizes),
            "micro_batches": layout.num_micro_batches,
            "parameters": {"total": job.model.num_parameters, **self.components},
            "memory": {
                "device": self.cluster.device.memory,
                "fits": self.fits,
                "worst_stage": layout.worst.stage,
                "stages": [{**asdict(stage), "total": stage.total} for stage in layout.stages],
            },
            "traffic": {
                "stage": self.traffic_stage,
                "kinds": {
                    kind: {**asdict(part), "sent": part.sent} for kind, part in self.traffic.items()
                },
            },
            "data": {**asdict(work), "fill": work.fill},
            "flops_per_step": {**asdict(self.flops), "total": self.flops.total},
            "slots_per_step": slots,
            "tokens_per_step": job.global_batch_size * work.tokens,
            "steps": job.steps,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "step_time": {**asdict(layout.time), "total": layout.time.total},
            "total_time": job.steps * layout.time.total,
            "slots_per_second_per_gpu": slots / layout.time.total / self.cluster.world_size,
            "mfu": self.mfu,
            "remarks": list(job.remarks),
        }


def job_of(recipe: TrainRecipe, assumed: AssumedData) -> Job:
    """Looks the recipe's model and data up. Raises DsmError where they cannot be had."""
    model, remark = planned_model(recipe)
    work = pack_work(recipe, assumed)
    remarks = [remark] if remark else []
    if work.is_assumed:
        remarks.append(work.source)
    return Job(
        model=model,
        precision=recipe.training.precision,
        parallel=recipe.parallel,
        work=work,
        global_batch_size=recipe.training.global_batch_size,
        steps=recipe.training.steps,
        remarks=tuple(remarks),
    )


def make_plan(job: Job, cluster: Cluster) -> Plan:
    """The job in the layout of its recipe. Raises DsmError with every mistake of the layout."""
    mistakes = job.mistakes(job.parallel, cluster.world_size)
    if mistakes:
        raise DsmError(f"the layout does not fit {cluster.world_size} GPUs: " + "; ".join(mistakes))
    layout = plan_layout(job, job.parallel, cluster)
    by_stage = [_stage_traffic(job, layout, stage) for stage in _ends(layout.sizes.pp)]
    most = max(by_stage, key=lambda item: sum(part.sent for part in item[1].values()))
    pack = job.work.flops(job.model)
    return Plan(
        job=job,
        cluster=cluster,
        layout=layout,
        components=_whole_model(job.model),
        flops=TrainingFlops(
            linears=job.global_batch_size * pack.linears,
            head=job.global_batch_size * pack.head,
            attention=job.global_batch_size * pack.attention,
        ),
        traffic=most[1],
        traffic_stage=most[0],
    )


def plan_layout(job: Job, parallel: ParallelConfig, cluster: Cluster) -> LayoutPlan:
    """Memory and time of a layout that has no mistakes."""
    sizes = layout_sizes(parallel, cluster.world_size)
    num_micro_batches = job.global_batch_size // sizes.dp
    return LayoutPlan(
        parallel=parallel,
        sizes=sizes,
        num_micro_batches=num_micro_batches,
        stages=memory_by_stage(
            job.model,
            parallel,
            job.precision,
            seq_length=job.work.seq_length,
            num_micro_batches=num_micro_batches,
            dp_size=sizes.dp,
            overhead=cluster.assumptions.overhead,
        ),
        time=predict_step_time(
            job.model,
            parallel,
            job.precision,
            sizes,
            cluster,
            flops_per_pack=job.work.flops(job.model),
            seq_length=job.work.seq_length,
            num_micro_batches=num_micro_batches,
        ),
    )


def _stage_traffic(job: Job, layout: LayoutPlan, stage: int) -> tuple[int, dict[Kind, Traffic]]:
    chunks = stage_chunks(job.model, layout.parallel, stage=stage, dp_cp_size=layout.sizes.dp_cp)
    once = step_traffic(layout.parallel, job.precision, layout.sizes, chunks)
    each = micro_batch_traffic(
        job.model,
        layout.parallel,
        job.precision,
        layout.sizes,
        seq_length=job.work.seq_length,
        stage=stage,
    )
    return stage, merged(once, each, layout.num_micro_batches)


def _ends(pp: int) -> list[int]:
    return sorted({0, min(1, pp - 1), pp - 1})


def _whole_model(model: ModelConfig) -> dict[Component, int]:
    (chunk,) = stage_chunks(model, ParallelConfig(), stage=0, dp_cp_size=1)
    return chunk.components
