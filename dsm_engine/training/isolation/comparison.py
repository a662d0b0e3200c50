"""Whether numbers are the same: bit for bit, to a bound, or within rounding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsm_engine.model.config import Precision
from dsm_engine.training.isolation.numbers import (
    INPUT_GRADIENTS,
    KINDS,
    PARAMETER_GRADIENTS,
    PassNumbers,
    TokenNumbers,
)
from dsm_engine.training.isolation.packs import PackDocument

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNIT_ROUNDOFF: dict[Precision, float] = {"fp32": 2.0**-24, "bf16": 2.0**-9}
# How many of them a layer may contribute. In bf16 they are the roundings of stored activations
# alone; sums are fp32 in both, and count where storing rounds no more.
_ROUNDINGS: dict[Precision, int] = {"fp32": 16, "bf16": 2}
_ROUNDINGS_OF_GRADIENTS: dict[Precision, int] = {"fp32": 64, "bf16": 16}


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Numbers that differ although only another document changed."""

    changed: str
    """The document whose tokens changed."""
    moved: str
    """The document or the parameter whose numbers differ."""
    kind: str
    num_moved: int
    num_compared: int
    largest: float
    """Largest absolute difference; NaN where one of the two is."""
    rank: int


@dataclass(kw_only=True)
class Comparison:
    """What has been compared before and after a change on this rank."""

    rank: int
    bound: float = 0.0
    """0: bit for bit. Else the largest difference allowed, as a share of the largest magnitude of
    the tensor: that is what a scale shared by its values rounds to."""
    num_compared: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    movements: list[Movement] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    """Documents whose own numbers are as before, with the kind: a comparison that cannot fail."""
    unrepeated: list[str] = field(default_factory=list)
    """Numbers that differ between two passes over the same pack: a comparison without meaning."""

    def compare_repeated(self, first: PassNumbers, second: PassNumbers) -> None:
        """Compares two passes over the same pack."""
        pairs = {
            kind: (numbers.values, second.tokens[kind].values)
            for kind, numbers in first.tokens.items()
        }
        for name, gradient in first.parameters.items():
            pairs[f"{PARAMETER_GRADIENTS} of {name}"] = (gradient, second.parameters[name])
        for name, (one, other) in pairs.items():
            if values_differ(one, other, self._allowed(one)).any():
                self.unrepeated.append(name)

    def compare(
        self,
        before: Tensor,
        after: Tensor,
        kind: str,
        changed: str,
        moved: str,
        allowed: float = 0.0,
    ) -> None:
        """Counts the values, and notes a movement where some differ by more than is allowed."""
        self.num_compared[kind] += before.numel()
        differs = values_differ(before, after, allowed)
        num_moved = int(differs.sum())
        if num_moved:
            difference = (before[differs].double() - after[differs].double()).abs()
            self.movements.append(
                Movement(
                    changed=changed,
                    moved=moved,
                    kind=kind,
                    num_moved=num_moved,
                    num_compared=before.numel(),
                    largest=float(difference.max()),
                    rank=self.rank,
                )
            )

    def compare_tokens(
        self,
        before: PassNumbers,
        after: PassNumbers,
        documents: Sequence[PackDocument],
        changed: PackDocument,
    ) -> None:
        """Compares the numbers of every document but the changed one, whose own must differ."""
        for kind, numbers in before.tokens.items():
            allowed = self._allowed(numbers.values)
            for document in documents:
                old, new = (
                    each.of(document.start, document.end) for each in (numbers, after.tokens[kind])
                )
                if document is not changed:
                    self.compare(old, new, kind, changed.name, document.name, allowed)
                elif (
                    self._must_move(kind, document, numbers)
                    and not values_differ(old, new, 0.0).any()
                ):
                    self.unreached.append(f"the {kind} of {document.name}")

    def compare_parameters(
        self, before: PassNumbers, after: PassNumbers, changed: PackDocument
    ) -> None:
        """Compares the gradients of every parameter, unless the other documents have no loss."""
        if not any(gradient.any() for gradient in before.parameters.values()):
            return
        for name, old in before.parameters.items():
            new, allowed = after.parameters[name], self._allowed(old)
            self.compare(old, new, PARAMETER_GRADIENTS, changed.name, name, allowed)

    def _allowed(self, tensor: Tensor) -> float:
        return self.bound * float(tensor.abs().max()) if self.bound else 0.0

    @staticmethod
    def _must_move(kind: str, document: PackDocument, numbers: TokenNumbers) -> bool:
        if kind == INPUT_GRADIENTS:
            # Those behind the last label are 0: a rank with a part of the tokens (SP, CP) may have
            # no others, but every loss of a document depends on its first token.
            return document.is_supervised and numbers.has(document.start)
        return len(numbers.of(document.start, document.end)) > 0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far packed and unpacked are apart where they are furthest."""

    worst: float
    """Norm of the difference over the norm of the unpacked numbers."""
    where: str
    """The document or the parameter."""
    bound: float
    rank: int

    @property
    def holds(self) -> bool:
        """Whether that is rounding."""
        return self.worst <= self.bound


def furthest(differences: Mapping[str, float], bound: float, rank: int) -> Agreement:
    """The largest of relative differences by name; NaN is infinitely far."""
    distances = {
        name: math.inf if math.isnan(value) else value for name, value in differences.items()
    }
    where = max(distances, key=lambda name: distances[name])
    return Agreement(worst=distances[where], where=where, bound=bound, rank=rank)


def rounding_bound(precision: Precision, kind: str, num_layers: int) -> float:
    """Largest relative L2 difference of a tensor that passes for rounding, `num_layers` being those
    its numbers went through.

    Packed and unpacked differ in how attention batches documents and in the order of sums. Every
    layer contributes relative errors of some unit roundoffs, independent of the other layers', so
    that their sum grows with the square root of the layers. The factors leave room for what
    normalisation and softmax amplify; gradients go through the layers twice and are sums over all
    tokens.
    """
    factors = _ROUNDINGS_OF_GRADIENTS if kind == PARAMETER_GRADIENTS else _ROUNDINGS
    return factors[precision] * _UNIT_ROUNDOFF[precision] * math.sqrt(num_layers)


def relative_difference(
    numbers: Tensor, reference: Tensor, magnitude: Tensor | None = None
) -> float:
    """L2 norm of the difference over that of the reference, or of the `magnitude` its roundings
    come from; 0 where both are 0."""
    difference = float(torch.linalg.vector_norm(numbers.double() - reference.double()))
    norm = float(torch.linalg.vector_norm((reference if magnitude is None else magnitude).double()))
    if difference == 0.0:
        return 0.0
    return difference / norm if norm else math.inf


def values_differ(before: Tensor, after: Tensor, allowed: float = 0.0) -> Tensor:
    """Bool, of the same shape: where the bits differ, or values by more than is allowed."""
    if allowed == 0.0:
        integer = _INTEGERS[before.element_size()]
        return before.contiguous().view(integer) != after.contiguous().view(integer)
    return ~((before.double() - after.double()).abs() <= allowed)  # a NaN is beyond any bound
