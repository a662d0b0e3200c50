"""Runs and times training steps of a recipe: the part of bench_throughput behind its arguments."""

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from result_file import Row, publish, summarize
from throughput_data import ThroughputData, synthetic_data
from throughput_report import Measured, compare, read_run, refuse_other_work

from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.flops import flops_of_sums, peak_flops
from dsm_engine.model.gpt import attention_case, build_chunks, named_shards
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.optimizer import set_hyperparameters, wrap_for_training
from dsm_engine.training.phases import PHASES, PhaseClock
from dsm_engine.training.run_data import open_run_data
from dsm_engine.training.setup import model_of, refuse_layout
from dsm_engine.training.slices import slices_of
from dsm_engine.training.step import forward_backward, optimizer_step
from dsm_engine.training.stream import PackStream


def measure_recipe(
    path: Path,
    overrides: Sequence[str],
    *,
    steps: int,
    warmup: int,
    synthetic: bool,
    peak: float | None,
    baseline: Path | None,
    output: Path,
    folder: Path,
) -> None:
    """Measures and, on rank 0, writes `output`; `folder` is this rank's own. Raises DsmError."""
    recipe = load_recipe(path, overrides, TrainRecipe)
    smaller = None if baseline is None else read_run(baseline)
    model = model_of(recipe)
    if synthetic:
        num_packs = (warmup + steps) * recipe.training.global_batch_size
        data = synthetic_data(recipe, model, num_packs=num_packs, folder=folder)
    else:
        run_data = open_run_data(recipe, model)
        data = ThroughputData(
            train=run_data.train,
            train_packs=run_data.train_packs,
            pad_id=run_data.tokenizer.eos_id,
            kind="real",
        )
    refuse_layout(recipe, model, cast(Any, data))
    with parallel_context(recipe.parallel, seed=recipe.seed) as context:
        if smaller is not None:
            refuse_other_work(
                smaller,
                model=model.model_dump(mode="json"),
                precision=recipe.training.precision,
                seq_length=recipe.data.seq_length,
                data=data.kind,
                device=_device_name(context.device),
            )
        trainer = _Trainer(recipe, model, data, context)
        trainer.read_ahead(warmup + steps)
        for step in range(warmup):
            trainer.step(step)
        trainer.forget()
        _barrier(context)
        started = time.perf_counter()
        for step in range(warmup, warmup + steps):
            trainer.step(step)
        _barrier(context)
        seconds = time.perf_counter() - started
        trainer.close()
        measured = trainer.measured(seconds, warmup=warmup, peak=peak)
        if context.rank == 0:
            _publish(measured, output, smaller, baseline)


def _publish(
    measured: Measured, output: Path, smaller: Measured | None, baseline: Path | None
) -> None:
    run = measured.to_json()
    theirs = None
    if smaller is not None:
        run["scaling"] = compare(measured, smaller)
        theirs = summarize([smaller.tokens_per_s_per_gpu])
    num_steps, num_gpus = len(measured.step_s), measured.num_gpus
    tokens = [n / s for n, s in zip(measured.step_tokens, measured.step_s, strict=True)]
    slots = [measured.slots_a_step / s for s in measured.step_s]
    rows = [
        Row(name="step", n=num_steps, value=summarize(measured.step_s)),
        Row(name="tokens", n=num_steps, value=summarize(tokens), unit="tokens/s"),
        Row(
            name="tokens_per_gpu",
            n=num_steps,
            value=summarize([rate / num_gpus for rate in tokens]),
            unit="tokens/s",
            baseline=None if baseline is None else str(baseline),
            baseline_value=theirs,
        ),
        Row(name="slots", n=num_steps, value=summarize(slots), unit="slots/s"),
        Row(
            name="slots_per_gpu",
            n=num_steps,
            value=summarize([rate / num_gpus for rate in slots]),
            unit="slots/s",
        ),
    ]
    publish(rows, output, machine={"gpu": measured.device}, more={"throughput": run})


class _Trainer:
    """One rank's side of the steps."""

    def __init__(
        self,
        recipe: TrainRecipe,
        model: ModelConfig,
        data: ThroughputData,
        context: ParallelContext,
    ) -> None:
        training = recipe.training
        self._recipe, self._model, self._data, self._context = recipe, model, data, context
        self._attention = choose_backend(
            training.attention_backend, attention_case(model, training.precision, context)
        ).name
        chunks = build_chunks(
            model, recipe.parallel, training.precision, context, attention=self._attention
        )
        _fill_at_random(chunks, model, context)
        self._wrapped, self._optimizer = wrap_for_training(
            chunks, training, recipe.parallel, context
        )
        self._slices = slices_of(data.train, recipe.logging, context.device)
        self._stream = PackStream(
            data.train,
            data.train_packs,
            pad_id=data.pad_id,
            seed=recipe.seed,
            context=context,
            weighting=training.loss_weighting,
            slices=self._slices,
        )
        self._clock = PhaseClock(context.device)
        self._clock.watch(self._wrapped[0].config, self._optimizer)
        self.forget()

    def read_ahead(self, num_steps: int) -> None:
        """Has packs read in the background, as in training, until `close`."""
        batch = self._recipe.training.global_batch_size
        self._stream.read_ahead(range(num_steps), batch)

    def close(self) -> None:
        """Ends reading ahead."""
        self._stream.close()

    def forget(self) -> None:
        """What was measured so far does not count."""
        self._step_s: list[float] = []
        self._phases: list[dict[str, float]] = []
        self._packs: list[list[int]] = []
        if self._context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self, step: int) -> None:
        """One optimizer step, the packs of that step of a training run."""
        recipe, training = self._recipe, self._recipe.training
        self._clock.begin()
        started = time.perf_counter()
        set_hyperparameters(self._optimizer, training, lr=training.lr)
        packs = self._stream.packs_of_step(step, training.global_batch_size)
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        forward_backward(
            self._wrapped,
            self._clock.waiting(self._stream.micro_batches(packs)),
            num_micro_batches=training.global_batch_size // self._context.dp_size,
            seq_length=recipe.data.seq_length,
            context=self._context,
            num_slices=0 if self._slices is None else len(self._slices.names),
        )
        optimizer_step(self._optimizer, self._context)
        times = self._clock.end()
        self._phases.append(times.by_phase())  # waits for the device
        self._step_s.append(time.perf_counter() - started)
        self._packs.append(packs)

    def measured(self, seconds: float, *, warmup: int, peak: float | None) -> Measured:
        """What all ranks together did in `seconds`; they must call it together."""
        mine = {
            "phases": {
                phase: sum(step[phase] for step in self._phases) / len(self._phases)
                for phase in PHASES
            },
            "memory": _memory_peak(self._context.device),
        }
        everyone: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(everyone, mine)
        recipe, context = self._recipe, self._context
        all_packs = [pack for packs in self._packs for pack in packs]
        sum_lengths, sum_squares = self._stream.sums_of_lengths(all_packs)
        flops = flops_of_sums(
            self._model,
            num_slots=len(all_packs) * recipe.data.seq_length,
            sum_lengths=sum_lengths,
            sum_squares=sum_squares,
        )
        device = _device_name(context.device)
        by_phase = {phase: [rank["phases"][phase] for rank in everyone] for phase in PHASES}
        return Measured(
            recipe=str(recipe.run.name),
            model=self._model.model_dump(mode="json"),
            num_parameters=self._model.num_parameters,
            precision=recipe.training.precision,
            attention=self._attention,
            device=device,
            num_nodes=max(1, context.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            num_gpus=context.world_size,
            parallel=recipe.parallel.model_dump(mode="json"),
            dp_size=context.dp_size,
            data=self._data.kind,
            seq_length=recipe.data.seq_length,
            global_batch_size=recipe.training.global_batch_size,
            warmup_steps=warmup,
            seconds=seconds,
            step_s=self._step_s,
            step_tokens=[self._stream.num_tokens(packs) for packs in self._packs],
            flops=flops.total,
            peak_flops=peak or peak_flops(device, recipe.training.precision),
            phases_mean_s={name: sum(times) / len(times) for name, times in by_phase.items()},
            phases_max_s={name: max(times) for name, times in by_phase.items()},
            memory_peak_bytes=max(rank["memory"] for rank in everyone),
        )


def _fill_at_random(chunks: Sequence[Any], model: ModelConfig, context: ParallelContext) -> None:
    """Weights of the right size; time does not depend on which, and no rank makes whole ones."""
    for chunk in chunks:
        for shard in named_shards(chunk, context):
            with torch.no_grad():
                if len(shard.full_shape) == 1:
                    shard.parameter.fill_(1.0)
                else:
                    shard.parameter.normal_(std=model.init_method_std)


def _memory_peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _barrier(context: ParallelContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
