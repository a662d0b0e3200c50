"""Polynomials in exact arithmetic, and the solutions of systems of them, in bounded time.

Everything is limited in size, so that no text, however it is made, takes long: what passes the
limits raises OverflowError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Self

Monomial = tuple[tuple[str, int], ...]
"""Names and exponents above 0, by name; the empty one stands for 1."""

_MAX_TERMS = 64
_MAX_DEGREE = 8
_MAX_BITS = 4096


class Unsolvable(ValueError):
    """The system has no finite set of rational solutions, or none that is found here."""


def num_bits(value: Fraction) -> int:
    """Of its numerator and denominator."""
    return value.numerator.bit_length() + value.denominator.bit_length()


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Coefficients by monomial, none of them 0. Raises OverflowError where it is too large."""

    terms: Mapping[Monomial, Fraction]

    def __post_init__(self) -> None:
        if len(self.terms) > _MAX_TERMS:
            raise OverflowError(f"a polynomial of more than {_MAX_TERMS} terms")
        for monomial, coefficient in self.terms.items():
            if sum(exponent for _, exponent in monomial) > _MAX_DEGREE:
                raise OverflowError(f"a degree above {_MAX_DEGREE}")
            if num_bits(coefficient) > _MAX_BITS:
                raise OverflowError("a coefficient is too large")

    @classmethod
    def constant(cls, value: Fraction) -> Self:
        return cls({(): value} if value else {})

    @classmethod
    def unknown(cls, name: str) -> Self:
        return cls({((name, 1),): Fraction(1)})

    def __add__(self, other: "Polynomial") -> "Polynomial":
        terms = dict(self.terms)
        for monomial, coefficient in other.terms.items():
            terms[monomial] = terms.get(monomial, Fraction(0)) + coefficient
        return Polynomial(_without_zeros(terms))

    def __sub__(self, other: "Polynomial") -> "Polynomial":
        return self + other * Polynomial.constant(Fraction(-1))

    def __mul__(self, other: "Polynomial") -> "Polynomial":
        terms: dict[Monomial, Fraction] = {}
        for left, left_coefficient in self.terms.items():
            for right, right_coefficient in other.terms.items():
                monomial = _times(left, right)
                product = left_coefficient * right_coefficient
                terms[monomial] = terms.get(monomial, Fraction(0)) + product
        return Polynomial(_without_zeros(terms))

    @property
    def unknowns(self) -> set[str]:
        return {name for monomial in self.terms for name, _ in monomial}

    @property
    def value(self) -> Fraction:
        """Of a polynomial without unknowns."""
        assert not self.unknowns
        return self.terms.get((), Fraction(0))

    @property
    def degree(self) -> int:
        return max((sum(e for _, e in monomial) for monomial in self.terms), default=0)

    def coefficients(self, name: str) -> list["Polynomial"]:
        """Those of the powers of an unknown, from the zeroth, in the other unknowns."""
        parts: list[dict[Monomial, Fraction]] = [{}]
        for monomial, coefficient in self.terms.items():
            exponents = dict(monomial)
            exponent = exponents.pop(name, 0)
            parts += [{} for _ in range(exponent + 1 - len(parts))]
            parts[exponent][tuple(exponents.items())] = coefficient
        return [Polynomial(part) for part in parts]

    def substitute(self, name: str, value: "Polynomial") -> "Polynomial":
        """With `value` in place of an unknown, by Horner's rule."""
        result = Polynomial({})
        for coefficient in reversed(self.coefficients(name)):
            result = result * value + coefficient
        return result

    def at(self, values: Mapping[str, Fraction]) -> Fraction:
        """The value where all its unknowns have values."""
        result = self
        for name in self.unknowns:
            result = result.substitute(name, Polynomial.constant(values[name]))
        return result.value


_ONE = Polynomial.constant(Fraction(1))


@dataclass(frozen=True, slots=True)
class RationalFunction:
    """A quotient of polynomials. It is not reduced: where its denominator is 0, something in the
    expression it came from divides by zero."""

    numerator: Polynomial
    denominator: Polynomial

    @classmethod
    def of(cls, value: "RationalFunction | Fraction") -> "RationalFunction":
        if isinstance(value, RationalFunction):
            return value
        return cls(Polynomial.constant(value), _ONE)

    @classmethod
    def unknown(cls, name: str) -> Self:
        return cls(Polynomial.unknown(name), _ONE)

    def __add__(self, other: "RationalFunction | Fraction") -> "RationalFunction":
        right = RationalFunction.of(other)
        if self.denominator == right.denominator:
            return RationalFunction(self.numerator + right.numerator, self.denominator)
        numerator = self.numerator * right.denominator + right.numerator * self.denominator
        return RationalFunction(numerator, self.denominator * right.denominator)

    def __mul__(self, other: "RationalFunction | Fraction") -> "RationalFunction":
        right = RationalFunction.of(other)
        return RationalFunction(
            self.numerator * right.numerator, self.denominator * right.denominator
        )

    def __truediv__(self, other: "RationalFunction | Fraction") -> "RationalFunction":
        right = RationalFunction.of(other)
        if not right.numerator.terms:
            raise ZeroDivisionError
        if not right.numerator.unknowns:  # no denominator that could be 0
            factor = Polynomial.constant(1 / right.numerator.value)
            return self * RationalFunction(right.denominator * factor, _ONE)
        return self * RationalFunction(right.denominator, right.numerator)

    def __neg__(self) -> "RationalFunction":
        return self * Fraction(-1)

    def __sub__(self, other: "RationalFunction | Fraction") -> "RationalFunction":
        return self + -RationalFunction.of(other)

    def __radd__(self, other: Fraction) -> "RationalFunction":
        return self + other

    def __rmul__(self, other: Fraction) -> "RationalFunction":
        return self * other

    def __rsub__(self, other: Fraction) -> "RationalFunction":
        return RationalFunction.of(other) - self

    def __rtruediv__(self, other: Fraction) -> "RationalFunction":
        return RationalFunction.of(other) / self

    def __pow__(self, exponent: int) -> "RationalFunction":
        result = RationalFunction.of(Fraction(1))
        for _ in range(exponent):
            result = result * self
        return result


def solve_polynomials(
    polynomials: Sequence[Polynomial], unknowns: Sequence[str]
) -> list[dict[str, Fraction]]:
    """All real solutions, in no particular order, of polynomials that are to be 0.

    An unknown that some polynomial has to the first power alone, with a number before it, is
    expressed by the others; what is left must be quadratic in one unknown. Raises Unsolvable where
    it is not, where a solution is irrational, and where there are infinitely many.
    """
    remaining = [polynomial for polynomial in polynomials if polynomial.terms]
    if any(not polynomial.unknowns for polynomial in remaining):
        return []
    if not remaining:
        if unknowns:
            raise Unsolvable("the unknowns are not determined")
        return [{}]
    for idx, polynomial in enumerate(remaining):
        for name in sorted(polynomial.unknowns):
            coefficients = polynomial.coefficients(name)
            if len(coefficients) == 2 and not coefficients[1].unknowns:
                factor = Polynomial.constant(-1 / coefficients[1].value)
                value = coefficients[0] * factor
                others = remaining[:idx] + remaining[idx + 1 :]
                return _with_value(others, unknowns, name, value)
    for polynomial in remaining:
        if len(polynomial.unknowns) == 1:
            (name,) = polynomial.unknowns
            return [
                solution
                for root in _roots(polynomial.coefficients(name))
                for solution in _with_value(remaining, unknowns, name, Polynomial.constant(root))
            ]
    raise Unsolvable("no unknown can be expressed by the others")


def _with_value(
    polynomials: Sequence[Polynomial], unknowns: Sequence[str], name: str, value: Polynomial
) -> list[dict[str, Fraction]]:
    substituted = [polynomial.substitute(name, value) for polynomial in polynomials]
    others = [other for other in unknowns if other != name]
    return [
        {**solution, name: value.at(solution)}
        for solution in solve_polynomials(substituted, others)
    ]


def _roots(coefficients: Sequence[Polynomial]) -> list[Fraction]:
    """The real roots of a polynomial in one unknown."""
    if len(coefficients) > 3:
        raise Unsolvable("a degree above 2 in one unknown")
    c, b, a = (coefficient.value for coefficient in coefficients)
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []
    root = Fraction(isqrt(discriminant.numerator), isqrt(discriminant.denominator))
    if root * root != discriminant:
        raise Unsolvable("a solution is irrational")
    return sorted({(-b - root) / (2 * a), (-b + root) / (2 * a)})


def _times(left: Monomial, right: Monomial) -> Monomial:
    exponents = dict(left)
    for name, exponent in right:
        exponents[name] = exponents.get(name, 0) + exponent
    return tuple(sorted(exponents.items()))


def _without_zeros(terms: dict[Monomial, Fraction]) -> dict[Monomial, Fraction]:
    return {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
