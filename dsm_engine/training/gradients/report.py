"""What the comparison of splits has found, on all ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsm_engine.model.config import Precision
from dsm_engine.training.isolation.comparison import Agreement
from dsm_engine.training.step import LossSum


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """One split of the batch by the engine's step, beside its documents summed one by one."""

    name: str
    width: int
    """Tokens of a micro-batch."""
    num_micro_batches: int
    """Of each data-parallel rank."""
    loss: LossSum
    gradient: Agreement
    """The parameter whose gradient is furthest apart."""


@dataclass(frozen=True, kw_only=True)
class PrecisionResult:
    """All splits in one precision."""

    precision: Precision
    attention: str
    """The backend that computed it."""
    num_supervised: int
    """Supervised tokens of the batch's documents, counted in the dataset."""
    divisor: int
    """What the loss is divided by, counted there too; the same where every token counts alike."""
    loss: LossSum
    """Over the documents one by one."""
    loss_bound: float
    """Largest difference of loss sums, as a share of them, that passes for rounding."""
    is_zero: bool
    """Whether the gradient is 0 on this rank, so that nothing is shown."""
    splits: tuple[SplitResult, ...]
    unrepeated: tuple[str, ...]
    """What differs by a bit between two runs of the first split."""

    def loss_apart(self, split: SplitResult) -> float:
        """Difference of the split's loss sum, weighted or not, as a share of the documents'."""
        apart = [
            abs(found - right) / max(abs(right), 1e-30)
            for found, right in (
                (split.loss.weighted_total, self.loss.weighted_total),
                (split.loss.total, self.loss.total),
            )
        ]
        return math.nan if any(map(math.isnan, apart)) else max(apart)

    @property
    def failure(self) -> str | None:
        """The first fault in words; None where there is none."""
        if not math.isfinite(self.loss.total):
            return f"in {self.precision}: the loss is {self.loss.total}: nothing is shown"
        if self.unrepeated:
            return (
                f"in {self.precision}: two runs of the {self.splits[0].name} differ in the "
                f"{self.unrepeated[0]}: the step is not deterministic"
            )
        if self.is_zero:
            return f"in {self.precision}: the gradient of the batch is 0: nothing is shown"
        for name, loss in (
            ("documents summed one by one", self.loss),
            *((split.name, split.loss) for split in self.splits),
        ):
            for found, right, what in (
                (loss.num_tokens, self.num_supervised, "supervised tokens were"),
                (loss.divisor, self.divisor, "in the divisor were"),
            ):
                if found != right:
                    return (
                        f"in {self.precision}: {name}: {found:,} {what} counted, the documents "
                        f"have {right:,}"
                    )
        for split in self.splits:
            if not self.loss_apart(split) <= self.loss_bound:  # a NaN is beyond any bound
                return (
                    f"in {self.precision}: {split.name}: the loss sum "
                    f"{split.loss.weighted_total:.9g} is not the documents' "
                    f"{self.loss.weighted_total:.9g} (apart {self.loss_apart(split):.3g} of it, "
                    f"bound {self.loss_bound:.3g})"
                )
        for split in self.splits:
            if not split.gradient.holds:
                return (
                    f"in {self.precision}: {split.name}: the gradient of {split.gradient.where} "
                    f"is apart from the documents' by {split.gradient.worst:.3g} of its norm "
                    f"(bound {split.gradient.bound:.3g}), on rank {split.gradient.rank}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class GradientsReport:
    """One result a precision, the same on every rank."""

    num_packs: int
    global_batch_size: int
    """Of the recipe; the batch that was taken is the first packs of its first one."""
    num_documents: int
    results: tuple[PrecisionResult, ...]

    @property
    def failure(self) -> str | None:
        """The first fault in words; None where there is none."""
        return next((each.failure for each in self.results if each.failure is not None), None)


def merge_ranks(ranks: Sequence[PrecisionResult]) -> PrecisionResult:
    """What the ranks found in one precision: of each split, the parameter that is furthest apart,
    and what any of them saw differ."""
    first = ranks[0]
    return replace(
        first,
        is_zero=all(each.is_zero for each in ranks),
        unrepeated=tuple(name for each in ranks for name in each.unrepeated),
        splits=tuple(
            replace(split, gradient=max((each.splits[i].gradient for each in ranks), key=_worst))
            for i, split in enumerate(first.splits)
        ),
    )


def _worst(agreement: Agreement) -> float:
    return agreement.worst
