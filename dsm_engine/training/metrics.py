"""Metrics of a run: one JSON line a step, TensorBoard beside it, and what an observer sees."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from dsm_engine.files import atomic_file


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the supervised tokens of the global batch (nats), before the step."""
    grad_norm: float
    """Global L2 norm before clipping."""
    lr: float
    num_tokens: int
    """Tokens of documents, padding left out."""
    num_slots: int
    """Token slots: packs x capacity."""
    num_supervised: int
    step_time_s: float
    tokens_per_s: float
    """Slots a second, over all ranks."""
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


class TrainObserver(Protocol):
    """Told of the run on rank 0; the command line draws its progress bar here."""

    def on_start(self, start: RunStart) -> None: ...

    def on_step(self, metrics: StepMetrics) -> None: ...

    def on_validation(self, step: int, loss: float) -> None: ...

    def on_checkpoint(self, step: int, folder: Path) -> None: ...

    def on_fault(self, step: int, text: str) -> None: ...


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard; only rank 0 has one."""

    def __init__(self, run: Path, *, first_step: int, tensorboard: bool) -> None:
        path = run / "metrics.jsonl"
        _keep_lines_until(path, first_step)
        self._file = path.open("ab")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def step(self, metrics: StepMetrics) -> None:
        """Writes one training step."""
        values = asdict(metrics)
        self._line({"kind": "step", **values})
        if self._board is not None:
            for name in ("loss", "grad_norm", "lr", "tokens_per_s"):
                self._board.add_scalar(f"train/{name}", values[name], metrics.step)

    def validation(self, step: int, loss: float) -> None:
        """Writes a validation loss (mean over supervised tokens, nats)."""
        self._line({"kind": "validation", "step": step, "loss": loss})
        if self._board is not None:
            self._board.add_scalar("validation/loss", loss, step)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Writes a line of another kind."""
        self._line({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _line(self, values: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(values) + b"\n")
        self._file.flush()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl; a torn last line (a killed run) is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [orjson.loads(line) for line in lines]


def _keep_lines_until(path: Path, step: int) -> None:
    """Drops what a run wrote after the checkpoint it is resumed from; all, where that is none."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if 0 < step >= line["step"]]
    with atomic_file(path) as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in kept)
