"""Looks at the loss and the gradient of each step before the weights move."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.faults.config import FaultsConfig
from dsm_engine.training.faults.dump import write_dump
from dsm_engine.training.faults.examples import (
    PackExamples,
    examples_of_step,
    worst_documents,
)
from dsm_engine.training.faults.exits import NonFiniteStep
from dsm_engine.training.faults.ledger import FaultLedger
from dsm_engine.training.faults.spikes import Spike, SpikeDetector
from dsm_engine.training.metrics import read_metrics
from dsm_engine.training.stream import PackStream

_NAMED = 3


class StepGuard:
    """One rank's side; all ranks see the same numbers, so all decide alike.

    `tell` is given what the user should read, with the step, on rank 0. `steps_done` is what the
    run is resumed from: steps gone over before it count, and its losses are those a spike is
    compared with. `facts` go with each fault into the ledger.
    """

    def __init__(
        self,
        config: FaultsConfig,
        run: Path,
        stream: PackStream,
        context: ParallelContext,
        *,
        steps_done: int,
        facts: dict[str, Any],
        tell: Callable[[int, str], None] | None = None,
    ) -> None:
        self._config = config
        self._run = run
        self._stream = stream
        self._context = context
        self._facts = facts
        self._tell = tell or (lambda step, text: None)
        self._ledger = FaultLedger(run) if context.rank == 0 else None
        self._num_skipped, losses = self._history(steps_done)
        self._detector: SpikeDetector | None = None
        if config.spike_threshold is not None:
            self._detector = SpikeDetector(
                window=config.spike_window, threshold=config.spike_threshold, before=losses
            )

    def of_step(
        self, step: int, packs: Sequence[int], token_losses: Sequence[Tensor]
    ) -> "StepJudge":
        """For one step, counted from 1; `token_losses` are [1, T] of this rank's micro-batches."""
        return StepJudge(self, step, packs, token_losses)

    def skip_or_end(self, step: int, what: str, value: float, examples: list[PackExamples]) -> None:
        """Writes the ledger and the dump. Raises NonFiniteStep where the step ends the run."""
        skips = self._config.non_finite == "skip" and self._num_skipped < self._config.max_skipped
        if self._ledger is not None:
            self._write_non_finite(step, what, value, examples, skips=skips)
        if not skips:
            raise NonFiniteStep(self._why_it_ends(step, what, value, examples))
        self._num_skipped += 1
        self._tell(
            step,
            f"{what} is {value}: nothing moved, {self._num_skipped} of at most "
            f"{self._config.max_skipped} steps gone over; {_named(examples)}",
        )

    def compare(self, loss: float) -> Spike | None:
        """Whether a finite loss is a spike."""
        return self._detector.see(loss) if self._detector is not None else None

    def flag(self, step: int, spike: Spike, examples: list[PackExamples]) -> None:
        """Writes a spike into the ledger."""
        if self._ledger is not None:
            records = _as_records(examples)
            self._ledger.write("spike", step, **asdict(spike), packs=records, **self._facts)
        self._tell(
            step,
            f"loss spike: {spike.loss:.4f}, {spike.score:.0f} standard deviations above "
            f"{spike.median:.4f}; {_named(examples)}",
        )

    def examples(self, packs: Sequence[int], token_losses: Sequence[Tensor]) -> list[PackExamples]:
        """All ranks together."""
        return examples_of_step(self._stream, packs, token_losses, self._context)

    def _write_non_finite(
        self, step: int, what: str, value: float, examples: list[PackExamples], *, skips: bool
    ) -> None:
        assert self._ledger is not None
        action = "skipped" if skips else "aborted"
        packs = [pack.pack for pack in examples]
        values = {"what": what, "value": str(value), "action": action, **self._facts}
        values["packs"] = _as_records(examples)
        dump = write_dump(self._run, step, self._stream.reader, packs, {"step": step, **values})
        self._ledger.write("non_finite", step, dump=str(dump.relative_to(self._run)), **values)

    def _why_it_ends(
        self, step: int, what: str, value: float, examples: Sequence[PackExamples]
    ) -> str:
        remedy = "lower training.lr, look at the data, or go over it (faults.non_finite=skip)"
        if self._config.non_finite == "skip":
            remedy = (
                f"{self._num_skipped} steps have been gone over (faults.max_skipped); lower "
                f"training.lr or look at the data"
            )
        return (
            f"step {step}: {what} is {value}; {remedy}, and go on with --resume from the last "
            f"checkpoint, if there is one. {_named(examples)}; all examples of the step are in "
            f"{self._run / FaultLedger.NAME}, dsm train RECIPE --replay {step} looks for the cause"
        )

    def _history(self, steps_done: int) -> tuple[int, list[float]]:
        """Steps gone over and losses of the run until then, as rank 0 reads them."""
        history: list[Any] = [0, []]
        if self._ledger is not None and steps_done:
            done = (line for line in read_metrics(self._run) if line["step"] <= steps_done)
            losses = [line["loss"] for line in done if line["kind"] == "step"]
            history[0] = self._ledger.num_skipped(until=steps_done)
            history[1] = losses[-self._config.spike_window :]
        dist.broadcast_object_list(history, src=0)
        return history[0], history[1]


class StepJudge:
    """What is asked of one step. All ranks ask together."""

    def __init__(
        self,
        guard: StepGuard,
        step: int,
        packs: Sequence[int],
        token_losses: Sequence[Tensor],
    ) -> None:
        self._guard = guard
        self._step = step
        self._packs = packs
        self._token_losses = token_losses

    def refuses(self, what: str, value: float) -> bool:
        """Whether the step must move nothing, because `value` is not finite.

        Raises NonFiniteStep where the recipe says so, or too many steps were gone over.
        """
        if math.isfinite(value):
            return False
        self._guard.skip_or_end(self._step, what, value, self._examples())
        return True

    def watch(self, loss: float) -> None:
        """Flags a finite loss that is a spike."""
        spike = self._guard.compare(loss)
        if spike is not None:
            self._guard.flag(self._step, spike, self._examples())

    def _examples(self) -> list[PackExamples]:
        return self._guard.examples(self._packs, self._token_losses)


def _as_records(examples: Sequence[PackExamples]) -> list[dict[str, Any]]:
    return [
        {"pack": pack.pack, "documents": pack.documents, "losses": [_json(x) for x in pack.losses]}
        for pack in examples
    ]


def _json(loss: float | None) -> float | str | None:
    return loss if loss is None or math.isfinite(loss) else str(loss)


def _named(examples: Sequence[PackExamples]) -> str:
    worst = worst_documents(examples, _NAMED)
    names = ", ".join(f"document {document} ({loss:.4g})" for document, loss in worst)
    return f"highest loss: {names}" if names else "no document has supervised tokens"
