"""Writes checkpoints beside the training, and publishes those that are whole.

`save` copies this rank's boxes into host memory, and a thread writes them to a file. The ranks
talk on their main threads alone: `save` plans, and `poll`, once all threads are done, agrees on
the outcome. Only then is the folder renamed and `latest` moved. A thread needs neither a spare
process nor the pipes to it, with which Megatron's own asynchronous writer hangs when a process
dies; torch writes a tensor's bytes without holding the interpreter's lock.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from dsm_engine.errors import DsmError
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.checkpoint.description import CheckpointDescription
from dsm_engine.training.checkpoint.moments import count_updates, held_slices, moment_boxes
from dsm_engine.training.checkpoint.under_way import SaveOutcome, SaveUnderWay
from dsm_engine.training.checkpoint.whole_model import own_boxes, torch_state, weight_boxes

MAX_FAILURES = 3
"""Saves in a row that may fail before the run ends."""


class CheckpointWriter:
    """Writes a run's checkpoints; every rank of the job has one and calls it in the same order.

    One save is under way at a time. A save that fails leaves the checkpoint before it as it is,
    and no half of its own.
    """

    def __init__(
        self,
        run: Path,
        chunks: Sequence[GPTModel],
        optimizer: MegatronOptimizer | None,
        context: ParallelContext,
        *,
        keep: int,
        background: bool,
    ) -> None:
        """`keep` newest checkpoints stay, and that of step 0. Without `background`, `save` returns
        when all is written."""
        self._run = run
        self._chunks = chunks
        self._optimizer = optimizer
        self._context = context
        self._keep = keep
        self._background = background
        self._pending: SaveUnderWay | None = None
        self._failures: list[SaveOutcome] = []

    def save(self, description: CheckpointDescription) -> list[SaveOutcome]:
        """Begins to write the weights as they are now, and the moments where the description names
        an optimizer. Returns what `poll` would of saves that have ended.

        Waits for the save before it. Raises DsmError as `poll` does.
        """
        ended = self.wait()
        self._pending = self._begin(description)
        return ended + ([] if self._background else self.wait())

    def poll(self) -> list[SaveOutcome]:
        """Publishes the save under way if all ranks have written it. At most one outcome.

        Raises DsmError where it is the third save in a row that fails.
        """
        return self.wait() if self._pending is not None and self._pending.is_written() else []

    def finish(self) -> list[SaveOutcome]:
        """Waits for the save under way and publishes it.

        Raises DsmError where the newest save has failed: what it holds is lost when the run ends.
        """
        ended = self.wait()
        if self._failures:
            raise _cannot_be_written(self._failures[-1], "the last checkpoint of the run")
        return ended

    def wait(self) -> list[SaveOutcome]:
        """Waits for the save under way and publishes it. Raises DsmError as `poll` does."""
        if self._pending is None:
            return []
        outcome = self._pending.end()
        self._pending = None
        if outcome.fault is None:
            self._failures = []
            return [outcome]
        self._failures.append(outcome)
        if len(self._failures) >= MAX_FAILURES:
            raise _cannot_be_written(outcome, f"{MAX_FAILURES} checkpoints in a row")
        return [outcome]

    def _begin(self, description: CheckpointDescription) -> SaveUnderWay:
        with_moments = description.optimizer is not None
        with self._context.megatron_scope(), torch.no_grad():
            weights = weight_boxes(self._chunks)
            boxes = [box for boxes in weights for box in boxes]
            updates = 0
            if with_moments:
                assert self._optimizer is not None
                updates = count_updates(self._optimizer)
                boxes += moment_boxes(held_slices(self._optimizer), weights)
            boxes = [_copied(box) if self._background else _apart(box) for box in own_boxes(boxes)]
        return SaveUnderWay(
            self._run,
            description,
            torch_state(boxes),
            self._context,
            keep=self._keep,
            updates=updates,
        )


def save_checkpoint(
    run: Path,
    description: CheckpointDescription,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer | None,
    context: ParallelContext,
    *,
    keep: int,
) -> Path:
    """Writes one checkpoint on all ranks together, points `latest` at it and returns its folder.

    The moments go with it where the description names an optimizer. Raises DsmError, on every
    rank, where one cannot write.
    """
    writer = CheckpointWriter(run, chunks, optimizer, context, keep=keep, background=False)
    outcomes = writer.save(description)
    writer.finish()
    return outcomes[-1].folder


def _copied(box: ShardedTensor) -> ShardedTensor:
    """The box with its data in host memory of their own: training moves the weights on."""
    assert box.data is not None
    return replace(box, data=box.data.detach().to("cpu", copy=True))


def _apart(box: ShardedTensor) -> ShardedTensor:
    """The same bytes as a tensor that is no part of another: torch's writer would clone it."""
    assert box.data is not None
    if box.data.device.type != "cpu":
        return box
    content = box.data.detach().view(-1).view(torch.uint8).numpy()
    return replace(box, data=torch.from_numpy(content).view(box.data.dtype).view(box.data.shape))


def _cannot_be_written(outcome: SaveOutcome, what: str) -> DsmError:
    return DsmError(
        f"{outcome.folder}: {what} cannot be written ({outcome.fault}); the one before is whole. "
        f"Make room and go on with --resume"
    )
