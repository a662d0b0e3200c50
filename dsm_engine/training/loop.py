"""The training run, from a recipe to a checkpoint."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from dsm_engine.errors import DsmError
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import attention_case, build_chunks
from dsm_engine.model.hf_weights import read_generation_config, save_hf_model
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.training.boards import refuse_missing_wandb
from dsm_engine.training.checkpoint import (
    CheckpointDescription,
    CheckpointWriter,
    SaveOutcome,
    describe_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    optimizer_kind,
)
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.deterministic import deterministic_mode
from dsm_engine.training.faults.exits import NonFiniteStep
from dsm_engine.training.faults.guard import StepGuard
from dsm_engine.training.faults.owner import all_agents, began_by
from dsm_engine.training.faults.stop import StopRequest
from dsm_engine.training.faults.watchdog import Watchdog
from dsm_engine.training.in_job_evaluation import (
    EvaluateFolder,
    InJobEvaluation,
    refuse_missing_evaluation,
)
from dsm_engine.training.meter import Meter
from dsm_engine.training.metrics import MetricsWriter, RunStart, TrainObserver
from dsm_engine.training.optimizer import (
    set_hyperparameters,
    sync_parameters,
    wrap_for_training,
)
from dsm_engine.training.phases import PhaseClock
from dsm_engine.training.reports import RunReports
from dsm_engine.training.run_data import RunData, open_run_data
from dsm_engine.training.run_folder import only_writer, refuse_foreign_folder, write_run_folder
from dsm_engine.training.schedule import learning_rate
from dsm_engine.training.setup import fill_weights, model_of, refuse_disagreement, refuse_layout
from dsm_engine.training.slices import SliceTable, slice_notes, slices_of
from dsm_engine.training.step import LossSum, forward_backward, optimizer_step
from dsm_engine.training.stream import PackStream

_OF_TIMEOUT = 0.8  # docstring of faults.hang_timeout_s


def train(
    recipe: TrainRecipe,
    *,
    resume: bool = False,
    observer: TrainObserver | None = None,
    evaluate: EvaluateFolder | None = None,
    stop: StopRequest | None = None,
) -> Path:
    """Runs the recipe to its last step, or to the step in which `stop` is requested on some rank,
    and returns the last checkpoint.

    Every rank of the job calls it. A job that torchrun starts again goes on with the run it
    began. `evaluate` is what the section `evaluation` calls. Raises DsmError for faults of the
    recipe, the data or the run folder, before anything is written.
    """
    if stop is not None:
        stop.limit(recipe.faults.stop_within_s)
    refuse_missing_wandb(recipe.logging)
    refuse_missing_evaluation(recipe, evaluate)
    with joined(recipe) as job:
        agents = all_agents()
        resume = resume or any(began_by(recipe.run, agent) for agent in agents)
        refuse_foreign_folder(recipe.run, resume=resume)
        dist.barrier()  # all ranks have looked at the run folder before rank 0 writes into it
        find_start = partial(latest_checkpoint, recipe.run) if resume else _afresh
        run = _Run(recipe, job, observer, evaluate, stop, find_start=find_start)
        return run.to_the_end(agents)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a rank works on, and where it stands."""

    model: ModelConfig
    data: RunData
    context: ParallelContext
    watchdog: Watchdog


@contextmanager
def joined(recipe: TrainRecipe) -> Iterator[Job]:
    """The recipe's model and data, checked against the layout, and then this rank's place in the
    job, for as long as it is in it."""
    model = model_of(recipe)
    data = open_run_data(recipe, model)
    refuse_layout(recipe, model, data)
    hang_timeout_s = recipe.faults.hang_timeout_s or _OF_TIMEOUT * recipe.parallel.timeout_s
    with (
        deterministic_mode() if recipe.training.deterministic else nullcontext(),
        parallel_context(recipe.parallel, seed=recipe.seed) as context,
        Watchdog(recipe.run, timeout_s=hang_timeout_s) as watchdog,
        watchdog.naming_lost_ranks(),
    ):
        yield Job(model=model, data=data, context=context, watchdog=watchdog)


class _Run:
    """One rank's side of a run."""

    def __init__(
        self,
        recipe: TrainRecipe,
        job: Job,
        observer: TrainObserver | None,
        evaluate: EvaluateFolder | None,
        stop: StopRequest | None,
        *,
        find_start: Callable[[], Path | None],
    ) -> None:
        model, data, context = job.model, job.data, job.context
        self._recipe = recipe
        self._watchdog = job.watchdog
        self._stop = stop
        self._is_stopping = False
        self._model_config = model
        self._context = context
        self._observer = observer if context.rank == 0 else None
        self._data = data
        pad_id = data.tokenizer.eos_id
        self._slices = slices_of(data.train, recipe.logging, context.device)
        self._validation_slices: SliceTable | None = None
        self._stream = PackStream(
            data.train,
            data.train_packs,
            pad_id=pad_id,
            seed=recipe.seed,
            context=context,
            weighting=recipe.training.loss_weighting,
            slices=self._slices,
        )
        self._validation_stream: PackStream | None = None
        if data.validation is not None and data.validation_packs is not None:
            self._validation_slices = slices_of(data.validation, recipe.logging, context.device)
            self._validation_stream = PackStream(
                data.validation,
                data.validation_packs,
                pad_id=pad_id,
                seed=0,
                context=context,
                slices=self._validation_slices,
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
        self._checkpoints = CheckpointWriter(
            recipe.run,
            self._chunks,
            self._optimizer,
            context,
            keep=recipe.logging.keep_checkpoints,
            background=recipe.logging.save_async,
        )
        self._newest = self._start_from
        self._step = 0
        if self._start_from is not None:
            loaded = load_checkpoint(
                self._start_from, model, self._chunks, self._optimizer, context
            )
            self._step = loaded.step
        self._clock = PhaseClock(context.device)
        self._clock.watch(self._wrapped[0].config, self._optimizer)
        self._meter = Meter(recipe, model, self._stream, self._slices, context)
        self._evaluation: InJobEvaluation | None = None
        if recipe.evaluation is not None:
            assert evaluate is not None, "refused above"
            self._evaluation = InJobEvaluation(
                recipe.evaluation, recipe.run, data.tokenizer, evaluate, first_step=self._step
            )
        self._reports = RunReports(None, self._observer)
        self._guard = StepGuard(
            recipe.faults,
            recipe.run,
            self._stream,
            context,
            steps_done=self._step,
            facts={"layout": recipe.parallel.model_dump(mode="json"), "attention": self._attention},
            tell=lambda step, text: self._reports.fault(step, text),
        )

    def to_the_end(self, agents: list[str]) -> Path:
        recipe, training = self._recipe, self._recipe.training
        with ExitStack() as stack:
            if self._context.rank == 0:
                stack.enter_context(only_writer(recipe.run, agents=agents))
                write_run_folder(
                    recipe,
                    self._data.train,
                    self._data.train_packs,
                    self._data.tokenizer,
                    attention=self._attention,
                )
                writer = MetricsWriter(recipe, first_step=self._step)
                stack.callback(writer.close)
                self._reports = RunReports(writer, self._observer)
            stack.callback(self._reports.flush)
            self._reports.start(self._run_start())
            if self._newest is None and recipe.logging.save_initial:
                self._save()
            if self._step == 0:
                self._validate()
            self._evaluate()
            steps_left = range(self._step, training.steps)
            self._stream.read_ahead(steps_left, training.global_batch_size)
            stack.callback(self._stream.close)
            while self._step < training.steps and not self._is_stopping:
                self._train_step()
                self._saved(self._checkpoints.poll())
                last = self._step == training.steps
                if last or self._step % recipe.logging.validate_every == 0:
                    self._validate()
                if last or self._is_stopping or self._step % recipe.logging.save_every == 0:
                    self._save()
                if not self._is_stopping:
                    self._evaluate()
            self._saved(self._checkpoints.finish())
            if self._is_stopping:
                self._reports.fault(self._step, "stopped by a signal; go on with --resume")
            assert self._newest is not None
            return self._newest

    def _train_step(self) -> None:
        training = self._recipe.training
        self._watchdog.begin(f"step {self._step + 1}")
        self._clock.begin()
        lr = learning_rate(training, self._step)
        set_hyperparameters(self._optimizer, training, lr=lr)
        packs = self._stream.packs_of_step(self._step, training.global_batch_size)
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        loss = forward_backward(
            self._wrapped,
            self._clock.waiting(self._stream.micro_batches(packs)),
            num_micro_batches=training.global_batch_size // self._context.dp_size,
            seq_length=self._recipe.data.seq_length,
            context=self._context,
            num_slices=self._stream.num_slices,
            vote=float(self._stop is not None and self._stop.requested),
        )
        self._is_stopping = loss.votes > 0
        self._step += 1
        grad_norm = self._move(packs, loss)
        times = self._clock.end()
        if grad_norm is None:
            self._reports.event("skipped", self._step)
        else:
            measure = self._meter.of_step(self._step, packs, loss, grad_norm=grad_norm, lr=lr)
            self._reports.step(times, measure)

    def _move(self, packs: list[int], loss: LossSum) -> float | None:
        """Moves the weights and returns the gradient's norm; None where the step is gone over.

        Raises NonFiniteStep, on every rank, where that ends the run; a checkpoint that is being
        written is finished first.
        """
        judge = self._guard.of_step(self._step, packs, loss.token_losses)
        try:
            if judge.refuses("loss", loss.mean):
                return None
            judge.watch(loss.mean)
            grad_norm = optimizer_step(
                self._optimizer, self._context, refuses=partial(judge.refuses, "gradient norm")
            )
        except NonFiniteStep:
            self._saved(self._checkpoints.wait())
            raise
        return grad_norm if math.isfinite(grad_norm) else None

    def _validate(self) -> None:
        stream, slices = self._validation_stream, self._validation_slices
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
            num_slices=stream.num_slices,
            forward_only=True,
        )
        for chunk in self._wrapped:
            chunk.train()
        by_slice = {} if slices is None else slices.losses(loss.slice_sums)
        self._reports.validation(self._step, loss.token_mean, by_slice)

    def _evaluate(self) -> None:
        """Where an evaluation is due after this step and was not done before."""
        last = self._step == self._recipe.training.steps
        if self._evaluation is None or not self._evaluation.is_due(self._step, last=last):
            return
        assert self._recipe.evaluation is not None
        self._watchdog.begin(
            f"the evaluation after step {self._step}", within_s=self._recipe.evaluation.timeout_s
        )
        sync_parameters(self._wrapped)
        outcome = self._evaluation.run(self._step, self._export)
        self._reports.evaluation(self._step, outcome)

    def _export(self, folder: Path) -> None:
        tokenizer = self._data.tokenizer
        save_hf_model(
            self._chunks,
            self._model_config,
            self._context,
            folder,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            generation=read_generation_config(self._recipe.run),
        )

    def _save(self) -> None:
        """Begins a checkpoint; whether it was written is told when it is known."""
        self._watchdog.begin(f"saving step {self._step}")
        with self._reports.waiting("checkpoint", self._step):
            outcomes = self._begin_checkpoint()
        self._saved(outcomes)

    def _begin_checkpoint(self) -> list[SaveOutcome]:
        sync_parameters(self._wrapped)
        return self._checkpoints.save(
            CheckpointDescription(
                step=self._step,
                model=self._model_config,
                precision=self._recipe.training.precision,
                stream=self._stream_identity,
                optimizer=optimizer_kind(self._optimizer) if self._step > 0 else None,
            )
        )

    def _saved(self, outcomes: list[SaveOutcome]) -> None:
        """Tells of checkpoints that have been written since they were begun, or could not be."""
        for outcome in outcomes:
            if outcome.fault is None:
                self._newest = outcome.folder
                self._reports.checkpoint(outcome.step, outcome.folder)
            else:
                self._reports.save_failed(outcome.step, outcome.fault)

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
            notes=slice_notes(self._slices, self._recipe.logging, self._context.device),
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
