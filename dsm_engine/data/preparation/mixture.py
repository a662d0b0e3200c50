"""How often each example of a source stands in the dataset: caps, epochs, weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShare:
    """What a source gives to the mixture."""

    available: int
    """Examples that passed the quality steps."""
    capped: int
    """Of those, at most its cap."""
    chosen: int
    """Of those again, the ones that stand in the dataset at all."""
    documents: int
    """How many documents they are, repetitions counted."""
    wanted: int
    """What its weight asks for; `documents` where there are no weights."""

    def passes(self, *, seed: int, source_idx: int) -> Iterator[NDArray[np.bool_]]:
        """Whether each available example is taken, [available], once for each time it is gone
        through; a later pass takes no example that an earlier one did not."""
        if not self.documents:
            return
        order = np.random.default_rng((seed, source_idx)).permutation(self.available)
        whole, rest = divmod(self.documents, self.chosen)
        for size in [*[self.chosen] * whole, *([rest] if rest else [])]:
            taken = np.zeros(self.available, np.bool_)
            taken[order[:size]] = True
            yield taken


def share_out(recipe: PreprocessRecipe, available: Sequence[int]) -> list[SourceShare]:
    """Each source's share, from how many examples of it there are."""
    sources = recipe.sources
    limits = [_limit(source, count) for source, count in zip(sources, available, strict=True)]
    wanted = list(limits)
    if sources[0].weight is not None:
        weights = [Fraction(source.weight or 0) for source in sources]
        wanted = _by_weight(weights, limits, recipe.mixture.examples)
    return [
        _share(source, count, min(want, limit), want)
        for source, count, limit, want in zip(sources, available, limits, wanted, strict=True)
    ]


def _capped(source: SourceRecipe, available: int) -> int:
    return available if source.cap is None else min(source.cap, available)


def _limit(source: SourceRecipe, available: int) -> int:
    """The most documents that the source can give."""
    return round(Fraction(source.epochs) * _capped(source, available))


def _by_weight(weights: Sequence[Fraction], limits: Sequence[int], total: int | None) -> list[int]:
    """Shares of the total, rounded so that they sum to it: largest remainders first."""
    whole = sum(weights)
    if total is None:
        total = min(
            int(limit * whole / weight) for limit, weight in zip(limits, weights, strict=True)
        )
    exact = [total * weight / whole for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda idx: counts[idx] - exact[idx])
    for idx in by_remainder[: total - sum(counts)]:
        counts[idx] += 1
    return counts


def _share(source: SourceRecipe, available: int, documents: int, wanted: int) -> SourceShare:
    capped = _capped(source, available)
    return SourceShare(
        available=available,
        capped=capped,
        chosen=min(capped, documents),
        documents=documents,
        wanted=wanted,
    )
