"""Looks at the loss and the gradient of each step before the weights move."""

import math
from collections.abc import Callable, Sequence
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
from dsm_engine.training.faults.spikes import SpikeDetector
from dsm_engine.training.metrics import read_metrics
from dsm_engine.training.stream import PackStream

_NAMED = 3


class StepGuard:
    """One rank's side; all ranks see the same numbers, so all decide alike.

    `tell` is given what the user should read, with the step, on rank 0. `steps_done` is what the
    run is resumed from: steps gone over before it count, and its losses are those a spike is
    compared with.
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

    def refuses(
        self,
        step: int,
        what: str,
        value: float,
        *,
        packs: Sequence[int],
        token_losses: Sequence[Tensor],
    ) -> bool:
        """Whether the step must move nothing, because `value` is not finite.

        `step` counts from 1. All ranks together. Raises NonFiniteStep where the recipe says so, or
        too many steps were gone over; the ledger and the dump are written before.
        """
        if math.isfinite(value):
            return False
        examples = examples_of_step(self._stream, packs, token_losses, self._context)
        skips = self._config.non_finite == "skip" and self._num_skipped < self._config.max_skipped
        action = "skipped" if skips else "aborted"
        if self._ledger is not None:
            values = {"what": what, "value": str(value), "action": action, **self._facts}
            dump = write_dump(
                self._run,
                step,
                self._stream.reader,
                packs,
                {"step": step, **values, "packs": _as_records(examples)},
            )
            self._ledger.write(
                "non_finite",
                step,
                **values,
                dump=str(dump.relative_to(self._run)),
                packs=_as_records(examples),
            )
        if not skips:
            raise NonFiniteStep(self._why_it_ends(step, what, value, examples))
        self._num_skipped += 1
        self._tell(
            step,
            f"{what} is {value}: nothing moved, {self._num_skipped} of "
            f"{self._config.max_skipped} steps gone over; {_named(examples)}",
        )
        return True

    def watch_loss(
        self, step: int, loss: float, *, packs: Sequence[int], token_losses: Sequence[Tensor]
    ) -> None:
        """Flags a spike: its examples go into the ledger. All ranks together."""
        spike = self._detector.see(loss) if self._detector is not None else None
        if spike is None:
            return
        examples = examples_of_step(self._stream, packs, token_losses, self._context)
        if self._ledger is not None:
            self._ledger.write(
                "spike",
                step,
                loss=loss,
                median=spike.median,
                score=spike.score,
                packs=_as_records(examples),
            )
        self._tell(
            step,
            f"loss spike: {loss:.4f}, {spike.score:.0f} standard deviations above "
            f"{spike.median:.4f}; {_named(examples)}",
        )

    def _why_it_ends(
        self, step: int, what: str, value: float, examples: Sequence[PackExamples]
    ) -> str:
        if self._config.non_finite == "skip":
            remedy = (
                f"faults.max_skipped={self._config.max_skipped} steps have been gone over; lower "
                f"training.lr or look at the data"
            )
        else:
            remedy = "lower training.lr, look at the data, or go over such steps (faults.non_finite=skip)"
        return (
            f"step {step}: {what} is {value}; {remedy}, and go on with --resume from the last "
            f"checkpoint, if there is one. {_named(examples)}; all of them are in "
            f"{self._run / 'faults.jsonl'}, and dsm train RECIPE --replay {step} looks for the cause"
        )

    def _history(self, steps_done: int) -> tuple[int, list[float]]:
        """Steps gone over and losses of the run until then, as rank 0 reads them."""
        history: list[Any] = [None, None]
        if self._ledger is not None and steps_done:
            history[0] = self._ledger.num_skipped(until=steps_done)
            history[1] = [
                line["loss"]
                for line in read_metrics(self._run)
                if line["kind"] == "step" and line["step"] <= steps_done
            ][-self._config.spike_window :]
        dist.broadcast_object_list(history, src=0)
        return history[0] or 0, history[1] or []


def _as_records(examples: Sequence[PackExamples]) -> list[dict[str, Any]]:
    return [
        {"pack": pack.pack, "documents": pack.documents, "losses": [_json(x) for x in pack.losses]}
        for pack in examples
    ]


def _json(loss: float | None) -> float | str | None:
    return loss if loss is None or math.isfinite(loss) else str(loss)


def _named(examples: Sequence[PackExamples]) -> str:
    worst = worst_documents(examples, _NAMED)
    return "highest loss: " + ", ".join(f"document {document} ({loss:.4g})" for document, loss in worst)
