"""`dsm train RECIPE --replay STEP`: a dumped step once more, and what in it is not finite.

The weights are those of the newest checkpoint before the step, moved by the steps between them as
the run moved them. On the layout of the run that gives the weights the step had, bit for bit; on
another it gives them within rounding. What cannot come again: a fault of a machine, kernels that
do not give the same bits twice, and steps trained under another recipe than the one given.
Nothing is written.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.model.gpt import named_shards
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.checkpoint import describe_checkpoint
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.faults.dump import DumpedPacks, StepDump, read_dump
from dsm_engine.training.faults.examples import examples_of_step
from dsm_engine.training.faults.guard import StepJudge
from dsm_engine.training.loop import _Run, joined
from dsm_engine.training.step import LossSum, forward_backward
from dsm_engine.training.stream import MicroBatch

_SHOWN = 8


def replay(recipe: TrainRecipe, step: int, *, tell: Callable[[str], None]) -> None:
    """Goes through a dumped step, counted from 1, without moving a weight.

    Every rank of the job calls it; `tell` is given the findings on rank 0. Raises DsmError where
    there is no such dump, or no checkpoint before it and the recipe's fresh weights do not serve.
    """
    dump = read_dump(recipe.run, step)
    recipe = recipe.model_copy(update={"evaluation": None})
    with joined(recipe) as job:
        find_start = partial(_newest_checkpoint, recipe.run, before=step)
        run = _Run(recipe, job, None, None, None, find_start=find_start)
        _Replay(run, dump, tell if job.context.rank == 0 else _say_nothing).of_step(step)


def _newest_checkpoint(run: Path, *, before: int) -> Path | None:
    """The checkpoint of the most steps, fewer than `before`; None where there is none."""
    folders = sorted((run / "checkpoints").glob("step_*"), reverse=True)
    return next((f for f in folders if describe_checkpoint(f).step < before), None)


def _say_nothing(line: str) -> None:
    """For ranks other than 0."""


class _Replay:
    def __init__(self, run: _Run, dump: StepDump, tell: Callable[[str], None]) -> None:
        self._run = run
        self._dump = dump
        self._tell = tell
        self._context: ParallelContext = run._context
        self._finite = True

    def of_step(self, step: int) -> None:
        run = self._run
        self._tell(f"weights: {_origin(run._step, run._start_from)}")
        self._compare_layout()
        run._guard = _SilentGuard()  # pyright: ignore[reportAttributeAccessIssue]
        while run._step < step - 1:
            run._train_step()
            self._tell(f"step {run._step:,} done again")
        run._watchdog.begin(f"replaying step {step}")
        self._refuse_other_packs(step)
        stream = run._stream
        stream.read_from(DumpedPacks(self._dump, stream.reader))  # pyright: ignore[reportArgumentType]
        self._report_weights()
        loss, grad_norm, broken = self._forward_backward(self._dump.packs)
        self._tell(f"step {step:,}: loss {loss.mean}, gradient norm {grad_norm}")
        self._report_documents(loss)
        self._report_gradients("the step", broken)
        if broken:
            self._report_pack_by_pack()
        if self._finite and math.isfinite(grad_norm):
            self._tell("everything is finite: the fault did not come again")

    def _compare_layout(self) -> None:
        then = self._dump.facts.get("layout")
        if then != self._run._recipe.parallel.model_dump(mode="json"):
            self._tell("the layout is another than the run's: numbers agree within rounding only")

    def _refuse_other_packs(self, step: int) -> None:
        training = self._run._recipe.training
        packs = self._run._stream.packs_of_step(step - 1, training.global_batch_size)
        if packs != self._dump.packs:
            raise DsmError(
                f"step {step}: the dump has packs {self._dump.packs[:_SHOWN]}..., the recipe's "
                f"stream {packs[:_SHOWN]}...; give the recipe and the data of the run"
            )

    def _forward_backward(self, packs: Sequence[int]) -> tuple[LossSum, float, list[str]]:
        """Loss and gradient norm of the packs, and the parameters whose gradient is not finite."""
        run, context = self._run, self._context
        for chunk in run._wrapped:
            chunk.zero_grad_buffer()
        run._optimizer.zero_grad()
        micro_batches = list(run._stream.micro_batches(list(packs)))
        num_padding = -len(micro_batches) % context.pp_size if context.vp_size > 1 else 0
        loss = forward_backward(
            run._wrapped,
            _padded(micro_batches, num_padding),
            num_micro_batches=len(micro_batches) + num_padding,
            seq_length=run._recipe.data.seq_length,
            context=context,
            num_slices=run._stream.num_slices,
        )
        with context.megatron_scope():
            run._optimizer.prepare_grads()
            any_optimizer: Any = run._optimizer
            grad_norm = float(any_optimizer.get_grad_norm())
        gradients = {name: p.main_grad for name, p in self._parameters().items()}
        return loss, grad_norm, self._not_finite(gradients)

    def _parameters(self) -> dict[str, Any]:
        """This rank's, by whole-model names."""
        shards = (named_shards(chunk, self._context) for chunk in self._run._chunks)
        return {shard.name: shard.parameter for chunk in shards for shard in chunk}

    def _not_finite(self, tensors: dict[str, Tensor]) -> list[str]:
        """Names with values that are not finite on any rank, in the model's order."""
        mine = [
            (_place(name), place, name)
            for place, (name, tensor) in enumerate(tensors.items())
            if not bool(tensor.isfinite().all())
        ]
        parts: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(parts, mine)
        return list(dict.fromkeys(name for *_, name in sorted(chain(*parts))))

    def _report_weights(self) -> None:
        names = self._not_finite({n: p.detach() for n, p in self._parameters().items()})
        if names:
            self._finite = False
            self._tell(f"weights that are not finite before the step: {_few(names)}")

    def _report_documents(self, loss: LossSum) -> None:
        stream = self._run._stream
        examples = examples_of_step(stream, self._dump.packs, loss.token_losses, self._context)
        for pack in examples:
            for document, mean in zip(pack.documents, pack.losses, strict=True):
                if mean is not None and not math.isfinite(mean):
                    self._finite = False
                    self._tell(f"pack {pack.pack}, document {document}: loss {mean}")

    def _report_gradients(self, whose: str, names: list[str]) -> None:
        if names:
            self._finite = False
            self._tell(
                f"{whose}: {len(names)} gradients are not finite; the backward pass comes to them "
                f"in this order: {_few(names[::-1])}"
            )

    def _report_pack_by_pack(self) -> None:
        """Each micro-batch alone; one of each data-parallel rank go together."""
        stream, dp_size = self._run._stream, self._context.dp_size
        mine = stream.packs_of_rank(self._dump.packs)
        parts: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(parts, (self._context.dp_rank, mine))
        by_rank = dict(parts)
        for row in zip(*(by_rank[rank] for rank in range(dp_size)), strict=True):
            _, _, broken = self._forward_backward(row)
            name = f"pack {row[0]}" if dp_size == 1 else f"one of packs {list(row)}"
            self._report_gradients(name, broken)


class _SilentGuard:
    """Goes over what is not finite and writes nothing."""

    def of_step(self, step: int, packs: object, token_losses: object) -> StepJudge:
        judge: Any = _SilentJudge()
        return judge


class _SilentJudge:
    def refuses(self, what: str, value: float) -> bool:
        return not math.isfinite(value)

    def watch(self, loss: float) -> None:
        pass


def _padded(micro_batches: list[MicroBatch], num_padding: int) -> Iterator[MicroBatch]:
    """And behind them the first again, without weight: an interleaved pipeline takes groups."""
    yield from micro_batches
    for _ in range(num_padding):
        micro_batches[0].loss_weights.zero_()
        yield micro_batches[0]


def _origin(step: int, folder: Path | None) -> str:
    return f"{folder}, step {step:,}" if folder is not None else "those the recipe starts from"


def _place(name: str) -> tuple[int, int]:
    """Where in the forward pass a parameter's module comes: part and layer."""
    parts = ("embedding.", "decoder.layers.", "decoder.", "output_layer.")
    part = next(i for i, prefix in enumerate(parts) if name.startswith(prefix))
    return part, int(name.split(".")[2]) if part == 1 else 0


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
