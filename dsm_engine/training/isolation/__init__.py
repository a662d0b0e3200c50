"""Whether the documents of a pack are isolated, shown on a recipe's own model, layout and data.

Two halves. The token ids of one document change, and every number of every other document must
stay the same, bit for bit. Then each document is computed alone, and the pack must give the same
numbers within rounding (docs/verification.md).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from dsm_engine.data.packed_batch import PackReader
from dsm_engine.errors import DsmError
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.model.gpt import attention_case, build_chunks
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.deterministic import deterministic_mode
from dsm_engine.training.isolation.check import IsolationOptions, check_pack, num_passes
from dsm_engine.training.isolation.packs import Pack, choose_packs, read_pack
from dsm_engine.training.isolation.report import IsolationReport, PackResult, merge_ranks
from dsm_engine.training.run_data import open_run_data
from dsm_engine.training.setup import fill_weights, model_of, refuse_disagreement, refuse_layout

Progress = Callable[[int, int], None]
"""Takes how many passes over packs are done on this rank, and how many there will be."""


def verify_isolation(
    recipe: TrainRecipe,
    options: IsolationOptions,
    progress: Progress = lambda done, total: None,
) -> IsolationReport:
    """Checks the recipe's model, with the weights it starts from, on packs of its training set.

    Every rank of the job calls it and gets the same report. Raises DsmError for faults of the
    recipe, the data or the options; documents that are not isolated are in the report.
    """
    _refuse_options(recipe, options)
    model = model_of(recipe)
    data = open_run_data(recipe, model)
    chosen = choose_packs(data.train_packs, options.num_packs)
    precisions: tuple[Precision, ...] = options.precisions or (recipe.training.precision,)
    results: list[PackResult] = []
    refuse_layout(recipe, model, data)
    with parallel_context(recipe.parallel, seed=recipe.seed) as context, ExitStack() as stack:
        refuse_disagreement(recipe, data.stream_identity(recipe))
        reader = PackReader(data.train, data.train_packs, pad_id=data.tokenizer.eos_id)
        mine = chosen[context.dp_rank :: context.dp_size]
        packs = _read_packs(reader, mine, context)
        # What training takes, which knows nothing of the deterministic mode.
        backends: dict[Precision, str] = {
            precision: _backend(recipe, model, precision, context, options)
            for precision in precisions
        }
        stack.enter_context(deterministic_mode())
        done, total = 0, len(precisions) * sum(num_passes(pack, options) for pack in packs)

        def on_pass() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for precision in precisions:
            chunks = build_chunks(
                model,
                recipe.parallel,
                precision,
                context,
                attention=backends[precision],
                training=options.gradients,
            )
            fill_weights(chunks, recipe, model, context)
            # torch stops compiling FlexAttention after a few widths, and goes on by other means.
            asked = replace(options, keep_width=backends[precision] == "flex")
            for pack in packs:
                results.append(check_pack(chunks, pack, model, precision, context, asked, on_pass))
            del chunks  # before the next one is built
        all_ranks: list[Any] = [None] * context.world_size
        dist.all_gather_object(all_ranks, results)
    return IsolationReport(
        packs=merge_ranks([result for rank in all_ranks for result in rank]),
        attention=backends,
        gradients=options.gradients,
        bound=options.bound,
    )


def _read_packs(reader: PackReader, indices: list[int], context: ParallelContext) -> list[Pack]:
    """This rank's packs. Raises DsmError on every rank where one of them is at fault."""
    packs: list[Pack] = []
    fault: str | None = None
    try:
        packs = [read_pack(reader, pack_idx, context.device) for pack_idx in indices]
    except DsmError as error:
        fault = str(error)
    faults: list[Any] = [None] * context.world_size
    dist.all_gather_object(faults, fault)
    for found in faults:
        if found is not None:
            raise DsmError(found)
    return packs


def _backend(
    recipe: TrainRecipe,
    model: ModelConfig,
    precision: Precision,
    context: ParallelContext,
    options: IsolationOptions,
) -> str:
    """The attention backend that is checked: the one that training would take."""
    name = recipe.training.attention_backend
    training = options.gradients or name == "auto"
    return choose_backend(name, attention_case(model, precision, context, training=training)).name


def _refuse_options(recipe: TrainRecipe, options: IsolationOptions) -> None:
    for name, value in (("packs", options.num_packs), ("documents", options.num_documents)):
        if value < 1:
            raise DsmError(f"--{name} {value}: at least 1 is needed")
