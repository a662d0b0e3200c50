"""What a run tells: to its metrics and boards, and to whoever watches it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsm_engine.training.metrics import (
    EvaluationOutcome,
    MetricsWriter,
    RunStart,
    StepMetrics,
    TrainObserver,
)
from dsm_engine.training.phases import StepTimes
from dsm_engine.training.slices import SliceLoss


class RunReports:
    """Reports of a run in the order of its steps; on ranks other than 0 there is nobody to tell.

    A step is reported as soon as the device is through with it, without waiting for it: at the
    latest when the next one comes, or something else is told.
    """

    def __init__(self, writer: MetricsWriter | None, observer: TrainObserver | None) -> None:
        self._writer = writer
        self._observer = observer
        self._pending: tuple[StepTimes, Callable[[StepTimes], StepMetrics]] | None = None

    def start(self, start: RunStart) -> None:
        """What is known before the first step."""
        if self._observer is not None:
            self._observer.on_start(start)

    def step(self, times: StepTimes, measure: Callable[[StepTimes], StepMetrics]) -> None:
        """A step; `measure` makes its metrics once its times can be read."""
        self.flush()
        self._pending = times, measure
        if times.ready():
            self.flush()

    def validation(self, step: int, loss: float, slices: Mapping[str, SliceLoss]) -> None:
        """A validation loss (mean over supervised tokens, nats), and by slice."""
        self.flush()
        if self._writer is not None:
            self._writer.validation(step, loss, slices)
        if self._observer is not None:
            self._observer.on_validation(step, loss)

    def evaluation(self, step: int, outcome: EvaluationOutcome) -> None:
        """Scores of the model after a step."""
        self.flush()
        if self._writer is not None:
            self._writer.evaluation(step, outcome)
        if self._observer is not None:
            self._observer.on_evaluation(step, outcome)

    @contextmanager
    def waiting(self, kind: str, step: int) -> Iterator[None]:
        """Around what training waits for; the seconds are an event of the kind."""
        self.flush()
        started = time.perf_counter()
        yield
        self.event(kind, step, wait_s=time.perf_counter() - started)

    def checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint that is whole."""
        self.flush()
        if self._observer is not None:
            self._observer.on_checkpoint(step, folder)

    def save_failed(self, step: int, fault: str) -> None:
        """A checkpoint that could not be written; the one before is whole."""
        self.flush()
        if self._writer is not None:
            self._writer.save_failed(step, fault)
        if self._observer is not None:
            self._observer.on_save_failed(step, fault)

    def fault(self, step: int, text: str) -> None:
        """What went wrong, or what the run was asked."""
        self.flush()
        if self._observer is not None:
            self._observer.on_fault(step, text)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """A line of another kind in the metrics."""
        self.flush()
        if self._writer is not None:
            self._writer.event(kind, step, **values)

    def flush(self) -> None:
        """Reports the step that is left, and waits for the device where it must."""
        if self._pending is None:
            return
        times, measure = self._pending
        self._pending = None
        if self._writer is None and self._observer is None:
            return
        metrics = measure(times)
        if self._writer is not None:
            self._writer.step(metrics)
        if self._observer is not None:
            self._observer.on_step(metrics)
