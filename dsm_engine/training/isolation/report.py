"""What the check has found, on all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsm_engine.model.config import Precision
from dsm_engine.training.isolation.comparison import Agreement, Movement
from dsm_engine.training.isolation.numbers import KINDS


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Both halves on one pack."""

    precision: Precision
    pack_idx: int
    num_documents: int
    """The tail padding is one."""
    changed: tuple[str, ...]
    """Documents that were changed in turn."""
    num_compared: dict[str, int]
    """Values that were compared before and after, by kind; 0 where a kind was left out."""
    movements: tuple[Movement, ...]
    """Where isolation fails."""
    unreached: tuple[str, ...]
    """Where a changed document's own numbers stayed: the comparison could not fail."""
    unrepeated: tuple[str, ...]
    """Where two passes over the same pack differ: the comparison means nothing."""
    agreements: dict[str, Agreement]
    """How far packed and unpacked are apart, by kind."""

    def num_moved(self, kind: str) -> int:
        """Values of the kind that moved."""
        return sum(movement.num_moved for movement in self.movements if movement.kind == kind)

    @property
    def failure(self) -> str | None:
        """The first fault in words; None where both halves hold."""
        where = f"pack {self.pack_idx} in {self.precision}"
        if self.unrepeated:
            return (
                f"{where}: two passes over the same pack differ in the {self.unrepeated[0]}: the "
                f"model is not deterministic, and nothing is shown"
            )
        if self.movements:
            first, more = self.movements[0], len(self.movements) - 1
            return (
                f"{where}: documents are not isolated: other tokens in {first.changed} moved "
                f"{first.num_moved:,} of {first.num_compared:,} {first.kind} of {first.moved}, "
                f"by up to {first.largest:.3g}, on rank {first.rank}"
                + (f" (and {more:,} more such)" if more else "")
            )
        if self.unreached:
            return f"{where}: the change did not reach {self.unreached[0]}: nothing is shown"
        for kind, agreement in self.agreements.items():
            if not agreement.holds:
                return (
                    f"{where}: packed and unpacked differ by more than rounding: {kind} of "
                    f"{agreement.where} by {agreement.worst:.3g} of their norm (bound "
                    f"{agreement.bound:.3g}), on rank {agreement.rank}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class IsolationReport:
    """The packs of all ranks, the same on each."""

    packs: tuple[PackResult, ...]
    attention: dict[Precision, str]
    """The backend that computed it, by precision."""
    gradients: bool
    bound: float

    @property
    def failure(self) -> str | None:
        """The first fault in words and how many packs have one; None where there is none."""
        failures = [failure for pack in self.packs if (failure := pack.failure) is not None]
        if not failures:
            return None
        if len(failures) == 1:
            return failures[0]
        return f"{failures[0]}; {len(failures)} of {len(self.packs)} packs have faults"

    @property
    def is_isolated(self) -> bool:
        """Whether no other document's number moved, where one could have been seen to move."""
        return not any(pack.movements or pack.unreached or pack.unrepeated for pack in self.packs)

    @property
    def equals_unpacked(self) -> bool:
        """Whether every document's numbers are, within rounding, those it has alone."""
        return all(each.holds for pack in self.packs for each in pack.agreements.values())

    def furthest(self) -> list[tuple[Precision, str, int, Agreement]]:
        """Precision, kind, pack and how far packed and unpacked are apart in the worst pack."""
        worst: dict[tuple[Precision, str], tuple[int, Agreement]] = {}
        for pack in self.packs:
            for kind, agreement in pack.agreements.items():
                key = (pack.precision, kind)
                if key not in worst or agreement.worst > worst[key][1].worst:
                    worst[key] = (pack.pack_idx, agreement)
        return [(*key, *found) for key, found in worst.items()]


def merge_ranks(results: Sequence[PackResult]) -> tuple[PackResult, ...]:
    """One result a pack and precision, of those of the ranks that hold a part of the model."""
    merged: dict[tuple[str, int], PackResult] = {}
    for result in results:
        key = (result.precision, result.pack_idx)
        merged[key] = _merged(merged[key], result) if key in merged else result
    return tuple(merged.values())


def _merged(mine: PackResult, other: PackResult) -> PackResult:
    return replace(
        mine,
        num_compared={
            kind: count + other.num_compared[kind] for kind, count in mine.num_compared.items()
        },
        movements=mine.movements + other.movements,
        unreached=mine.unreached + other.unreached,
        unrepeated=mine.unrepeated + other.unrepeated,
        agreements={
            kind: max(found, key=lambda each: each.worst / each.bound)
            for kind in KINDS  # losses and logits are on the last stage alone
            if (
                found := [
                    each[kind] for each in (mine.agreements, other.agreements) if kind in each
                ]
            )
        },
    )
