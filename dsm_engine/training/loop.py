"""The training run, from a recipe to a checkpoint."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from dsm_engine.errors import DsmError
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import attention_case, build_chunks
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.training.checkpoint import (
    CheckpointDescription,
    describe_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    optimizer_kind,
    save_checkpoint,
)
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.faults.guard import StepGuard
from dsm_engine.training.faults.owner import all_agents, began_by
from dsm_engine.training.faults.stop import StopRequest
from dsm_engine.training.faults.watchdog import Watchdog
from dsm_engine.training.metrics import MetricsWriter, RunStart, StepMetrics, TrainObserver
from dsm_engine.training.optimizer import (
    set_hyperparameters,
    sync_parameters,
    wrap_for_training,
)
from dsm_engine.training.run_data import RunData, open_run_data
from dsm_engine.training.run_folder import only_writer, refuse_foreign_folder, write_run_folder
from dsm_engine.training.schedule import learning_rate
from dsm_engine.training.setup import fill_weights, model_of, refuse_disagreement, refuse_layout
from dsm_engine.training.step import forward_backward, optimizer_step
from dsm_engine.training.stream import PackStream

_OF_TIMEOUT = 0.8  # docstring of faults.hang_timeout_s


def train(
    recipe: TrainRecipe,
    *,
    resume: bool = False,
    observer: TrainObserver | None = None,
    stop: StopRequest | None = None,
) -> Path:
    """Runs the recipe to its last step, or to the step in which `stop` is requested on some rank,
    and returns the last checkpoint.

    Every rank of the job calls it. A job that torchrun starts again goes on with the run it
    began. Raises DsmError for faults of the recipe, the data or the run folder, before anything
    is written.
    """
    if stop is not None:
        stop.limit(recipe.faults.stop_within_s)
    with joined(recipe) as (model, data, context, watchdog):
        agents = all_agents()
        resume = resume or any(began_by(recipe.run, agent) for agent in agents)
        refuse_foreign_folder(recipe.run, resume=resume)
        dist.barrier()  # all ranks have looked at the run folder before rank 0 writes into it
        find_start = partial(latest_checkpoint, recipe.run) if resume else _afresh
        run = _Run(recipe, model, data, context, watchdog, observer, stop, find_start=find_start)
        return run.to_the_end(agents)


@contextmanager
def joined(
    recipe: TrainRecipe,
) -> Iterator[tuple[ModelConfig, RunData, ParallelContext, Watchdog]]:
    """The recipe's model and data, checked against the layout, and then this rank's place in the
    job, for as long as it is in it."""
    model = model_of(recipe)
    data = open_run_data(recipe, model)
    refuse_layout(recipe, model, data)
    hang_timeout_s = recipe.faults.hang_timeout_s or _OF_TIMEOUT * recipe.parallel.timeout_s
    with (
        parallel_context(recipe.parallel, seed=recipe.seed) as context,
        Watchdog(recipe.run, timeout_s=hang_timeout_s) as watchdog,
        watchdog.naming_lost_ranks(),
    ):
        yield model, data, context, watchdog


class _Run:
    """One rank's side of a run."""

    def __init__(
        self,
        recipe: TrainRecipe,
        model: ModelConfig,
        data: RunData,
        context: ParallelContext,
        watchdog: Watchdog,
        observer: TrainObserver | None,
        stop: StopRequest | None,
        *,
        find_start: Callable[[], Path | None],
    ) -> None:
        self._recipe = recipe
        self._watchdog = watchdog
        self._stop = stop
        self._is_stopping = False
        self._model_config = model
        self._context = context
        self._observer = observer if context.rank == 0 else None
        self._data = data
        pad_id = data.tokenizer.eos_id
        self._stream = PackStream(
            data.train, data.train_packs, pad_id=pad_id, seed=recipe.seed, context=context
        )
        self._validation_stream: PackStream | None = None
        if data.validation is not None and data.validation_packs is not None:
            self._validation_stream = PackStream(
                data.validation, data.validation_packs, pad_id=pad_id, seed=0, context=context
            )
        self._stream_identity = data.stream_identity(recipe)
        self._start_from = _agreed_start(recipe, self._stream_identity, find_start)
        if self._start_from is not None:
            self._refuse_other_stream(self._start_from)

        self._attention = choose_backend(
            recipe.training.attention_backend,
            attention_case(model, recipe.training.precision, context),
        ).name
        self._chunks: list[GPTModel] = build_chunks(
            model,
            recipe.parallel,
            recipe.training.precision,
            context,
            attention=self._attention,
        )
        if self._start_from is None:
            fill_weights(self._chunks, recipe, model, context)
        self._wrapped, self._optimizer = wrap_for_training(
            self._chunks, recipe.training, recipe.parallel, context
        )
        self._step = 0
        if self._start_from is not None:
            loaded = load_checkpoint(
                self._start_from, model, self._chunks, self._optimizer, context
            )
            self._step = loaded.step
        self._guard = StepGuard(
            recipe.faults,
            recipe.run,
            self._stream,
            context,
            steps_done=self._step,
            facts={"layout": recipe.parallel.model_dump(mode="json"), "attention": self._attention},
            tell=None if self._observer is None else self._observer.on_fault,
        )

    def to_the_end(self, agents: list[str]) -> Path:
        recipe, training = self._recipe, self._recipe.training
        with ExitStack() as stack:
            writer: MetricsWriter | None = None
            if self._context.rank == 0:
                stack.enter_context(only_writer(recipe.run, agents=agents))
                write_run_folder(
                    recipe,
                    self._data.train,
                    self._data.train_packs,
                    self._data.tokenizer,
                    attention=self._attention,
                )
                writer = MetricsWriter(
                    recipe.run, first_step=self._step, tensorboard=recipe.logging.tensorboard
                )
                stack.callback(writer.close)
            if self._observer is not None:
                self._observer.on_start(self._run_start())
            folder = self._start_from
            if folder is None and recipe.logging.save_initial:
                folder = self._save()
            if self._step == 0:
                self._validate(writer)
            while self._step < training.steps and not self._is_stopping:
                metrics = self._train_step()
                if metrics is None and writer is not None:
                    writer.event("skipped", self._step)
                if metrics is not None and writer is not None:
                    writer.step(metrics)
                if metrics is not None and self._observer is not None:
                    self._observer.on_step(metrics)
                last = self._step == training.steps
                if last or self._step % recipe.logging.validate_every == 0:
                    self._validate(writer)
                if last or self._is_stopping or self._step % recipe.logging.save_every == 0:
                    folder = self._save()
            if self._is_stopping and self._observer is not None:
                self._observer.on_fault(self._step, "stopped by a signal; go on with --resume")
            assert folder is not None
            return folder

    def _train_step(self) -> StepMetrics | None:
        """None where the step was gone over."""
        training = self._recipe.training
        self._watchdog.begin(f"step {self._step + 1}")
        started = time.perf_counter()
        lr = learning_rate(training, self._step)
        set_hyperparameters(self._optimizer, training, lr=lr)
        packs = self._stream.packs_of_step(self._step, training.global_batch_size)
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        loss = forward_backward(
            self._wrapped,
            self._stream.micro_batches(packs),
            num_micro_batches=training.global_batch_size // self._context.dp_size,
            seq_length=self._recipe.data.seq_length,
            context=self._context,
            vote=float(self._stop is not None and self._stop.requested),
        )
        self._is_stopping = loss.votes > 0
        self._step += 1
        judge = self._guard.of_step(self._step, packs, loss.token_losses)
        if judge.refuses("loss", loss.mean):
            return None
        judge.watch(loss.mean)
        grad_norm = optimizer_step(
            self._optimizer, self._context, refuses=partial(judge.refuses, "gradient norm")
        )
        if not math.isfinite(grad_norm):
            return None
        seconds = time.perf_counter() - started
        num_slots = training.global_batch_size * self._recipe.data.seq_length
        consumed = self._step * training.global_batch_size
        return StepMetrics(
            step=self._step,
            loss=loss.mean,
            grad_norm=grad_norm,
            lr=lr,
            num_tokens=self._stream.num_tokens(packs),
            num_slots=num_slots,
            num_supervised=loss.num_tokens,
            step_time_s=seconds,
            tokens_per_s=num_slots / seconds,
            consumed_samples=consumed,
            epoch=consumed / self._stream.num_packs,
        )

    def _validate(self, writer: MetricsWriter | None) -> None:
        stream = self._validation_stream
        if stream is None:
            return
        self._watchdog.begin(f"the validation after step {self._step}")
        packs = list(range(stream.num_packs))
        num_micro_batches = -(-len(packs) // self._context.dp_size)
        if self._context.vp_size > 1:  # an interleaved pipeline takes them in groups
            num_micro_batches += -num_micro_batches % self._context.pp_size
        for chunk in self._wrapped:
            chunk.eval()
        loss = forward_backward(
            self._wrapped,
            _padded(stream, packs, num_micro_batches),
            num_micro_batches=num_micro_batches,
            seq_length=self._recipe.data.seq_length,
            context=self._context,
            forward_only=True,
        )
        for chunk in self._wrapped:
            chunk.train()
        if writer is not None:
            writer.validation(self._step, loss.mean)
        if self._observer is not None:
            self._observer.on_validation(self._step, loss.mean)

    def _save(self) -> Path:
        self._watchdog.begin(f"saving step {self._step}")
        sync_parameters(self._wrapped)
        description = CheckpointDescription(
            step=self._step,
            model=self._model_config,
            precision=self._recipe.training.precision,
            stream=self._stream_identity,
            optimizer=optimizer_kind(self._optimizer) if self._step > 0 else None,
        )
        folder = save_checkpoint(
            self._recipe.run,
            description,
            self._chunks,
            self._optimizer if description.optimizer is not None else None,
            self._context,
            keep=self._recipe.logging.keep_checkpoints,
        )
        if self._observer is not None:
            self._observer.on_checkpoint(self._step, folder)
        return folder

    def _run_start(self) -> RunStart:
        return RunStart(
            run=self._recipe.run,
            num_parameters=self._model_config.num_parameters,
            num_documents=self._data.train.num_documents,
            packs_per_epoch=self._stream.num_packs,
            steps=self._recipe.training.steps,
            first_step=self._step,
            global_batch_size=self._recipe.training.global_batch_size,
            seq_length=self._recipe.data.seq_length,
            world_size=self._context.world_size,
            device=str(self._context.device),
            attention=self._attention,
        )

    def _refuse_other_stream(self, folder: Path) -> None:
        checkpoint = describe_checkpoint(folder)
        if checkpoint.step == 0:
            return  # nothing has been trained on yet
        if checkpoint.step > self._recipe.training.steps:
            raise DsmError(
                f"{folder}: has done {checkpoint.step} steps, training.steps asks for "
                f"{self._recipe.training.steps}; raise it"
            )
        precision = self._recipe.training.precision
        if checkpoint.precision != precision:
            raise DsmError(
                f"{folder}: was trained in {checkpoint.precision}, the recipe says {precision}; "
                f"restore training.precision, or export these weights and start a new run from "
                f"them (initialize_from)"
            )
        theirs = checkpoint.stream
        for key, mine in self._stream_identity.items():
            if theirs.get(key) != mine:
                raise DsmError(
                    f"{folder}: was trained on another stream of examples ({key} was "
                    f"{theirs.get(key)!r}, is {mine!r}); resuming would repeat or skip examples. "
                    f"Restore the setting, or start a new run from these weights"
                )


def _afresh() -> None:
    """No checkpoint to start from."""


def _agreed_start(
    recipe: TrainRecipe, stream: dict[str, Any], find_start: Callable[[], Path | None]
) -> Path | None:
    """The checkpoint rank 0 finds, for all ranks; None for a fresh start."""
    found: list[Any] = [find_start() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    refuse_disagreement(recipe, stream)
    return found[0]


def _padded(stream: PackStream, packs: list[int], num_micro_batches: int) -> Iterator[Any]:
    """This rank's validation packs; behind them, up to the number asked for, the first with no
    weight."""
    num_left = num_micro_batches
    for batch in stream.micro_batches(packs):
        num_left -= 1
        yield batch
    for _ in range(num_left):
        batch = stream.micro_batch(packs[0])
        batch.loss_weights.zero_()
        yield batch
