"""Metrics of a run: one JSON line a step, boards beside it, and what an observer sees.

docs/metrics.md has every field with its unit and formula.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from dsm_engine.files import atomic_file
from dsm_engine.training.boards import open_boards
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.slices import SliceLoss


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """What was minimized, before the step: weighted as training.loss_weighting says (nats)."""
    token_loss: float
    """Mean over the supervised tokens of the global batch (nats); `loss`, where each counts 1."""
    grad_norm: float
    """Global L2 norm before clipping."""
    lr: float
    num_tokens: int
    """Tokens of documents, padding left out."""
    num_slots: int
    """Token slots: packs x capacity."""
    num_supervised: int
    step_time_s: float
    slots_per_s: float
    """Over all ranks."""
    slots_per_s_per_gpu: float
    tokens_per_s_per_gpu: float
    """Tokens of documents, padding left out."""
    mfu: float | None
    """Model FLOPs utilization by model/flops.py, 0 to 1; None where the peak is not known."""
    memory_peak_bytes: int
    """Of rank 0 since it started: allocated by torch on CUDA, resident on a CPU."""
    time_s: dict[str, float]
    """By phase, of rank 0; they sum to step_time_s. `data` is the wait for data."""
    slices: dict[str, SliceLoss]
    """Token losses by slice, over all ranks; slices without supervised tokens are left out."""
    consumed_samples: int
    """Packs trained on since the first step."""
    epoch: float


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known before the first step."""

    run: Path
    num_parameters: int
    num_documents: int
    packs_per_epoch: int
    steps: int
    first_step: int
    global_batch_size: int
    seq_length: int
    world_size: int
    device: str
    attention: str
    """The backend that computes it."""
    notes: list[str] = field(default_factory=list)
    """What someone should know who reads the run's numbers."""


class TrainObserver(Protocol):
    """Told of the run on rank 0; the command line draws its progress bar here."""

    def on_start(self, start: RunStart) -> None: ...

    def on_step(self, metrics: StepMetrics) -> None: ...

    def on_validation(self, step: int, loss: float) -> None: ...

    def on_checkpoint(self, step: int, folder: Path) -> None: ...

    def on_fault(self, step: int, text: str) -> None: ...

    def on_save_failed(self, step: int, fault: str) -> None: ...

    def on_evaluation(self, step: int, outcome: "EvaluationOutcome") -> None: ...


@dataclass(frozen=True, kw_only=True)
class EvaluationOutcome:
    """What evaluating the model in the job came to."""

    scores: dict[str, float | None]
    """Accuracy, 0 to 1, by BENCHMARK/MODE; None for a mode that cannot run here."""
    seconds: float
    """That training waited."""
    error: str | None = None
    """Why there are no scores."""


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and the boards; only rank 0 has one."""

    def __init__(self, recipe: TrainRecipe, *, first_step: int) -> None:
        path = recipe.run / "metrics.jsonl"
        _keep_lines_until(path, first_step)
        self._boards = open_boards(
            recipe.run,
            recipe.logging,
            first_step=first_step,
            recipe=recipe.model_dump(mode="json"),
        )
        self._file = path.open("ab")

    def step(self, metrics: StepMetrics) -> None:
        """Writes one training step."""
        values = asdict(metrics)
        self._line({"kind": "step", **values})
        slices, times = values.pop("slices"), values.pop("time_s")
        numbers = {f"train/{name}": value for name, value in values.items() if name != "step"}
        numbers |= {f"time/{phase}": seconds for phase, seconds in times.items()}
        self._scalars(metrics.step, numbers | _by_slice("slices", slices))

    def validation(self, step: int, loss: float, slices: Mapping[str, SliceLoss]) -> None:
        """Writes a validation loss (mean over supervised tokens, nats), and by slice."""
        by_slice = {name: asdict(slice_loss) for name, slice_loss in slices.items()}
        self._line({"kind": "validation", "step": step, "loss": loss, "slices": by_slice})
        numbers = {"validation/loss": loss} | _by_slice("validation/slices", by_slice)
        self._scalars(step, numbers)

    def evaluation(self, step: int, outcome: EvaluationOutcome) -> None:
        """Writes the scores of an evaluation in the job."""
        self._line({"kind": "evaluation", "step": step, **asdict(outcome)})
        self._scalars(step, {f"evaluation/{k}": score for k, score in outcome.scores.items()})

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Writes a line of another kind; its numbers are on the boards as KIND/NAME."""
        self._line({"kind": kind, "step": step, **values})
        self._scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def save_failed(self, step: int, fault: str) -> None:
        """Writes that the checkpoint of a step could not be written."""
        self._line({"kind": "save_failed", "step": step, "fault": fault})

    def close(self) -> None:
        """Flushes all."""
        self._file.close()
        for board in self._boards:
            board.close()

    def _line(self, values: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(values) + b"\n")
        self._file.flush()

    def _scalars(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for board in self._boards:
            board.scalars(step, numbers)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl; a torn last line (a killed run) is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [orjson.loads(line) for line in lines]


def _by_slice(prefix: str, slices: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{prefix}/{name}": values["loss"] for name, values in slices.items()}


def _keep_lines_until(path: Path, step: int) -> None:
    """Drops what a run wrote after the checkpoint it is resumed from; all, where that is none."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if 0 < step >= line["step"]]
    with atomic_file(path) as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in kept)
