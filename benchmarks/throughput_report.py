"""What a throughput run came to: its JSON, and how two runs compare."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Steps behind the warm-up, all ranks together. A CPU process counts as a GPU."""

    recipe: str
    """Name of the recipe's run."""
    model: dict[str, Any]
    """As in a recipe."""
    num_parameters: int
    precision: str
    attention: str
    """The backend."""
    device: str
    """What torch calls the GPU of rank 0; `cpu`."""
    num_nodes: int
    num_gpus: int
    parallel: dict[str, Any]
    """The section of the recipe."""
    dp_size: int
    """Data-parallel ranks."""
    data: str
    """`synthetic` or `real`."""
    seq_length: int
    global_batch_size: int
    warmup_steps: int
    seconds: float
    """By the clock, from a barrier before the first step to one behind the last."""
    step_s: list[float]
    """Seconds of each step on rank 0."""
    step_tokens: list[int]
    """Tokens of documents in each step, padding left out."""
    flops: float
    """Operations of all steps by model/flops.py."""
    peak_flops: float | None
    """Operations a second of one GPU; None where nobody said."""
    phases_mean_s: dict[str, float]
    """Seconds a step in each phase (training/phases.py), mean over ranks."""
    phases_max_s: dict[str, float]
    """The slowest rank of each."""
    memory_peak_bytes: int
    """Of the rank with the most: allocated by torch on CUDA, resident on a CPU."""

    @property
    def slots_a_step(self) -> int:
        """Token slots: packs x capacity."""
        return self.global_batch_size * self.seq_length

    @property
    def tokens_per_s(self) -> float:
        """Tokens of documents, over all GPUs."""
        return sum(self.step_tokens) / self.seconds

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens_per_s / self.num_gpus

    @property
    def slots_per_s(self) -> float:
        return len(self.step_s) * self.slots_a_step / self.seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization, 0 to 1."""
        if self.peak_flops is None:
            return None
        return self.flops / (self.seconds * self.num_gpus * self.peak_flops)

    @property
    def layout(self) -> str:
        """Such as `TP4 SP PP2 VP2 DP8`."""
        parallel = self.parallel
        sizes = (
            ("TP", parallel["tensor_model_parallel_size"]),
            ("PP", parallel["pipeline_model_parallel_size"]),
            ("VP", parallel["virtual_pipeline_model_parallel_size"]),
            ("CP", parallel["context_parallel_size"]),
        )
        parts = [f"{name}{size}" for name, size in sizes if size > 1]
        if parallel["sequence_parallel"]:
            parts.insert(1, "SP")
        return " ".join([*parts, f"DP{self.dp_size}"])

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        return {
            **asdict(self),
            "layout": self.layout,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu,
            "slots_per_s": self.slots_per_s,
            "slots_per_s_per_gpu": self.slots_per_s / self.num_gpus,
            "mfu": self.mfu,
        }


def read_run(path: Path) -> Measured:
    """The run in a JSON of bench_throughput. Raises DsmError where it is none."""
    values = read_json(path)
    run = values.get("throughput") if isinstance(values, dict) else None
    names = [field.name for field in fields(Measured)]
    if not isinstance(run, Mapping) or not set(names) <= run.keys():
        raise DsmError(f"{path}: is no result of bench_throughput.py; measure it again")
    return Measured(**{name: run[name] for name in names})


def refuse_other_work(smaller: Measured, **ours: Any) -> None:
    """Raises DsmError where `smaller` was measured with another value of one of these fields."""
    for name, value in ours.items():
        theirs = getattr(smaller, name)
        if theirs != value:
            raise DsmError(
                f"--baseline: was measured with another {name} ({theirs}, not {value}); measure "
                f"it again"
            )


def compare(run: Measured, smaller: Measured) -> dict[str, Any]:
    """How `run` scales from `smaller`: its speed-up over how many times more GPUs it has."""
    speedup = run.tokens_per_s / smaller.tokens_per_s
    more = run.num_gpus / smaller.num_gpus
    same_batch = run.global_batch_size == smaller.global_batch_size
    same_share = run.global_batch_size == smaller.global_batch_size * more
    return {
        "baseline_gpus": smaller.num_gpus,
        "baseline_layout": smaller.layout,
        "baseline_tokens_per_s": smaller.tokens_per_s,
        "kind": "strong" if same_batch else "weak" if same_share else "mixed",
        "speedup": speedup,
        "efficiency": speedup / more,
    }
