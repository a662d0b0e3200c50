"""What losses by slice cost a step: the recipe's own steps with and without them, in turn.

    python benchmarks/bench_slices.py configs/gsm8k_smollm2.yaml training.global_batch_size=2
    torchrun --nproc-per-node N benchmarks/bench_slices.py RECIPE [section.key=value ...]

A step is forward and backward over the recipe's packs, with the sums over all ranks; weights do not
move, so both kinds do the same work, which is checked: their losses are equal to the bit. Rank 0
prints the medians and, with --output, writes them in the form of benchmarks/README.md.
"""

import argparse
import itertools
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from result_file import Row, publish, summarize

from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.gpt import attention_case, build_chunks
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.optimizer import wrap_for_training
from dsm_engine.training.run_data import RunData, open_run_data
from dsm_engine.training.setup import fill_weights, model_of, refuse_layout
from dsm_engine.training.slices import SliceTable, slices_of
from dsm_engine.training.step import LossSum, forward_backward
from dsm_engine.training.stream import PackStream


def main() -> None:
    arguments = _parse_arguments()
    warnings.filterwarnings("ignore")
    recipe = load_recipe(arguments.recipe, arguments.overrides, TrainRecipe)
    model = model_of(recipe)
    data = open_run_data(recipe, model)
    refuse_layout(recipe, model, data)
    with parallel_context(recipe.parallel, seed=recipe.seed) as context:
        slices = slices_of(data.train, recipe.logging, context.device)
        assert slices is not None, "the CUDA operators are not built, or logging.slices is off"
        steps = _Steps(recipe, data, slices, context)
        rows = _bench(steps, slices, arguments.repetitions, str(context.device))
        if context.rank == 0:
            publish(rows, arguments.output)


class _Steps:
    """The recipe's first step, with and without losses by slice."""

    def __init__(
        self, recipe: TrainRecipe, data: RunData, slices: SliceTable, context: ParallelContext
    ) -> None:
        model, precision = model_of(recipe), recipe.training.precision
        case = attention_case(model, precision, context)
        attention = choose_backend(recipe.training.attention_backend, case).name
        chunks = build_chunks(model, recipe.parallel, precision, context, attention=attention)
        fill_weights(chunks, recipe, model, context)
        self._wrapped, _ = wrap_for_training(chunks, recipe.training, recipe.parallel, context)
        self._recipe, self._context = recipe, context
        pad_id = data.tokenizer.eos_id
        self._streams = {
            table is not None: PackStream(
                data.train,
                data.train_packs,
                pad_id=pad_id,
                seed=recipe.seed,
                context=context,
                slices=table,
            )
            for table in (slices, None)
        }
        self._num_slices = {True: len(slices.names), False: 0}

    def run(self, *, sliced: bool) -> tuple[tuple[float, float], LossSum]:
        """Seconds of a step by the clock and of the processor, and its losses."""
        stream, batch_size = self._streams[sliced], self._recipe.training.global_batch_size
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._wait()
        started = time.perf_counter(), time.process_time()
        loss = forward_backward(
            self._wrapped,
            stream.micro_batches(stream.packs_of_step(0, batch_size)),
            num_micro_batches=batch_size // self._context.dp_size,
            seq_length=self._recipe.data.seq_length,
            context=self._context,
            num_slices=self._num_slices[sliced],
        )
        self._wait()
        return (time.perf_counter() - started[0], time.process_time() - started[1]), loss

    def _wait(self) -> None:
        if self._context.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()


def _bench(steps: _Steps, slices: SliceTable, repetitions: int, device: str) -> list[Row]:
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    losses = {sliced: steps.run(sliced=sliced)[1] for sliced in times}  # warm-up
    assert losses[True].total == losses[False].total, "other losses: nothing to compare"
    assert losses[True].num_tokens == losses[False].num_tokens
    # In turn, each as often first as second, so that both meet the same machine.
    orders = itertools.cycle([(True, False), (False, True)])
    for _, order in zip(range(repetitions), orders, strict=False):
        for sliced in order:
            times[sliced].append(steps.run(sliced=sliced)[0])
    return [
        Row(
            name=name,
            n=losses[True].num_tokens,
            value=summarize([pair[clock] for pair in times[True]]),
            baseline="the same step without",
            baseline_value=summarize([pair[clock] for pair in times[False]]),
            details={"slices": len(slices.names), "device": device},
        )
        for clock, name in enumerate(
            ("step_with_losses_by_slice", "step_with_losses_by_slice_cpu_time")
        )
    ]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
