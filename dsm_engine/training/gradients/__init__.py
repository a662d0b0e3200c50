"""Whether a global batch gives one gradient however it is split, shown on a recipe's own model,
weights, layout and data by the engine's own step (docs/verification.md)."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from dsm_engine.errors import DsmError
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.model.gpt import attention_case, build_chunks
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.deterministic import deterministic_mode
from dsm_engine.training.gradients.batch import BatchDocument, pack_of, read_documents
from dsm_engine.training.gradients.report import (
    GradientsReport,
    PrecisionResult,
    SplitResult,
    merge_ranks,
)
from dsm_engine.training.gradients.runs import (
    BatchGradient,
    engine_gradient,
    reference_gradient,
)
from dsm_engine.training.gradients.splits import Split, splits_of, width_of_one
from dsm_engine.training.isolation.comparison import (
    Agreement,
    furthest,
    relative_difference,
    rounding_bound,
    values_differ,
)
from dsm_engine.training.isolation.numbers import LOSSES, PARAMETER_GRADIENTS
from dsm_engine.training.optimizer import wrap_for_training
from dsm_engine.training.run_data import RunData, open_run_data
from dsm_engine.training.setup import fill_weights, model_of, refuse_disagreement, refuse_layout
from dsm_engine.training.stream import PackStream

Progress = Callable[[int, int], None]
"""Takes how many micro-batches of this rank are done, and how many there will be."""

_DEFAULT_PACKS = 4


@dataclass(frozen=True, kw_only=True)
class GradientsOptions:
    """How much is compared."""

    num_packs: int | None = None
    """Packs of the global batch: the first of them. Default: 4, or 2 for each data-parallel rank
    where that is more, as far as there are so many."""
    precisions: tuple[Precision, ...] = ()
    """Default: the recipe's."""


def verify_gradients(
    recipe: TrainRecipe,
    options: GradientsOptions,
    progress: Progress = lambda done, total: None,
) -> GradientsReport:
    """Splits the first packs of the recipe's first global batch in several ways and compares the
    gradients, those of the weights the recipe starts from.

    Every rank of the job calls it and gets the same report. Raises DsmError for faults of the
    recipe, the data or the options; gradients that differ are in the report.
    """
    model = model_of(recipe)
    data = open_run_data(recipe, model)
    refuse_layout(recipe, model, data)
    with parallel_context(recipe.parallel, seed=recipe.seed) as context:
        refuse_disagreement(recipe, data.stream_identity(recipe))
        return _Verification(recipe, model, data, context, options, progress).report()


class _Verification:
    """One rank's side of it."""

    def __init__(
        self,
        recipe: TrainRecipe,
        model: ModelConfig,
        data: RunData,
        context: ParallelContext,
        options: GradientsOptions,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._context = context
        self._precisions: tuple[Precision, ...] = options.precisions or (recipe.training.precision,)
        stream = PackStream(
            data.train,
            data.train_packs,
            pad_id=data.tokenizer.eos_id,
            seed=recipe.seed,
            context=context,
            weighting=recipe.training.loss_weighting,
        )
        num_packs = _num_packs(recipe, options, context)
        self._pack_indices = stream.packs_of_step(0, recipe.training.global_batch_size)[:num_packs]
        documents = read_documents(
            data.train, data.train_packs, self._pack_indices, recipe.training.loss_weighting
        )
        self._documents: list[BatchDocument] = list(itertools.chain.from_iterable(documents))
        self._num_supervised = sum(document.num_supervised for document in self._documents)
        self._divisor = sum(document.divisor for document in self._documents)
        if self._num_supervised == 0:
            raise DsmError(
                f"the {num_packs} packs of the batch have no supervised token: there is no "
                f"gradient to compare; raise --packs"
            )
        self._splits = splits_of(recipe, stream, self._pack_indices, documents, context)
        self._mine = self._documents[context.dp_rank :: context.dp_size]
        runs = [self._splits[0], *self._splits]
        num_passes = sum(split.num_micro_batches for split in runs) + len(self._mine)
        self._total = num_passes * len(self._precisions)
        self._done = 0
        self._progress = progress

    def report(self) -> GradientsReport:
        # What training takes, which knows nothing of the deterministic mode.
        backends: dict[Precision, str] = {
            precision: self._backend(precision) for precision in self._precisions
        }
        with deterministic_mode():
            results = [self._result(precision, backend) for precision, backend in backends.items()]
        all_ranks: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(all_ranks, results)
        return GradientsReport(
            num_packs=len(self._pack_indices),
            global_batch_size=self._recipe.training.global_batch_size,
            num_documents=len(self._documents),
            results=tuple(merge_ranks(ranks) for ranks in zip(*all_ranks, strict=True)),
        )

    def _result(self, precision: Precision, backend: str) -> PrecisionResult:
        recipe, context = self._recipe, self._context
        chunks = build_chunks(self._model, recipe.parallel, precision, context, attention=backend)
        fill_weights(chunks, recipe, self._model, context)
        width = width_of_one(recipe, self._documents)
        reference = reference_gradient(
            chunks,
            (pack_of([document], width=width, device=context.device) for document in self._mine),
            context,
            divisor=self._divisor,
            on_document=lambda: self._advance(1),
        )
        training = recipe.training.model_copy(update={"precision": precision})
        wrapped, optimizer = wrap_for_training(chunks, training, recipe.parallel, context)

        def run(split: Split) -> BatchGradient:
            gradient = engine_gradient(chunks, wrapped, optimizer, split, context)
            self._advance(split.num_micro_batches)
            return gradient

        first, *others = self._splits
        trained = run(first)
        results = [self._compared(first, trained, reference, precision)]
        before = {name: gradient.clone() for name, gradient in trained.parameters.items()}
        unrepeated = _unrepeated(trained, before, run(first))
        del before
        results += [self._compared(split, run(split), reference, precision) for split in others]
        return PrecisionResult(
            precision=precision,
            attention=backend,
            num_supervised=self._num_supervised,
            divisor=self._divisor,
            loss=reference.loss,
            loss_bound=rounding_bound(precision, LOSSES, self._model.num_layers),
            is_zero=not any(bool(gradient.any()) for gradient in reference.parameters.values()),
            splits=tuple(results),
            unrepeated=unrepeated,
        )

    def _compared(
        self, split: Split, found: BatchGradient, reference: BatchGradient, precision: Precision
    ) -> SplitResult:
        return SplitResult(
            name=split.name,
            width=split.width,
            num_micro_batches=split.num_micro_batches,
            loss=found.loss,
            gradient=self._agreement(found, reference, precision),
        )

    def _agreement(
        self, found: BatchGradient, reference: BatchGradient, precision: Precision
    ) -> Agreement:
        return furthest(
            {
                name: relative_difference(gradient, reference.parameters[name])
                for name, gradient in found.parameters.items()
            },
            rounding_bound(precision, PARAMETER_GRADIENTS, self._model.num_layers),
            self._context.rank,
        )

    def _backend(self, precision: Precision) -> str:
        case = attention_case(self._model, precision, self._context)
        return choose_backend(self._recipe.training.attention_backend, case).name

    def _advance(self, num_passes: int) -> None:
        self._done += num_passes
        self._progress(self._done, self._total)


def _num_packs(recipe: TrainRecipe, options: GradientsOptions, context: ParallelContext) -> int:
    most = recipe.training.global_batch_size
    if options.num_packs is None:
        return min(most, max(_DEFAULT_PACKS, 2 * context.dp_size))
    if not 1 <= options.num_packs <= most:
        raise DsmError(
            f"--packs {options.num_packs}: the recipe's global batch has 1 to {most} packs "
            f"(training.global_batch_size)"
        )
    return options.num_packs


def _unrepeated(
    first: BatchGradient, gradients: dict[str, Any], second: BatchGradient
) -> tuple[str, ...]:
    """What differs by a bit between two runs; `gradients` are copies of the first run's."""
    names = ["loss sum"] if first.loss != second.loss else []
    return (
        *names,
        *(
            f"gradient of {name}"
            for name, gradient in gradients.items()
            if values_differ(gradient, second.parameters[name]).any()
        ),
    )
