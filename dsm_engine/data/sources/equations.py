"""Equations of word problems: exact values, and the programs that compute them.

Grammar: integers, decimals, percentages, mixed numbers such as `1(5/6)`, brackets, `+ - * /`, `:`
for a ratio, `^` and `**`. Everything is computed in fractions: an equation either gives its
published answer to the last digit, or it is no training example. In systems of equations
(`equation_systems`) there are unknowns of one letter besides, and no mixed numbers: what stands
before a bracket or an unknown is a factor.

Texts and values are limited in size, so that no text, however it is made, takes long.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from dsm_engine.data.sources.polynomials import RationalFunction, num_bits

_TOKEN = re.compile(r"\s*(?:(\d+\.\d+|\d+)|(\*\*|[-+*/:^()\[\]%]|[A-Za-z]+)|$)")
_DECIMAL = re.compile(r"-?\d+\.(\d+)")
_PERCENTAGE = re.compile(r"-?\d+(?:\.(\d+))?%")
_MAX_CHARACTERS = 1000
_MAX_DIGITS = 100
_MAX_EXPONENT = 64
_MAX_VALUE_BITS = 4096
_MAX_DEPTH = 64
_SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(5)


class BadEquation(ValueError):
    """What is written there is not of the grammar, or has no value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A part of an equation: its value, and the Python expression that computes it.

    Raises BadEquation where the value is too large.
    """

    value: Fraction | RationalFunction
    """A number, or, with unknowns in it, a function of them."""
    code: str
    binding: int
    """How tightly its outermost operator binds."""
    is_int: bool
    """Whether the expression is a Python int; otherwise it is a fraction or has unknowns."""
    ratio: tuple[int, int] | None = None
    """Of a quotient of two integers as they are written."""

    def __post_init__(self) -> None:
        if isinstance(self.value, Fraction) and num_bits(self.value) > _MAX_VALUE_BITS:
            raise BadEquation("a value in it is too large")

    @property
    def has_unknowns(self) -> bool:
        return isinstance(self.value, RationalFunction)

    @property
    def number(self) -> Fraction:
        """The value of a term without unknowns. Raises BadEquation."""
        if isinstance(self.value, RationalFunction):
            raise BadEquation("an unknown stands where a number should")
        return self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A program, and what it prints."""

    program: str
    printed: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The code of something printed, and what is printed."""

    code: str
    printed: str


def solve(equation: str, answer: str) -> Solution | None:
    """The program of an equation such as `x=44*20`, printing in the form of the answer.

    The answer may be an integer, a decimal, a percentage, a fraction or a mixed number; decimals
    are rounded to the digits it has. None where the equation gives another value. Raises
    BadEquation where one of them cannot be read.
    """
    term = parse_expression(equation.strip().removeprefix("x="))
    shown = in_form_of(answer, term.number, "x")
    if shown is None:
        return None
    imports = "from fractions import Fraction\n\n" if "Fraction(" in term.code else ""
    program = f"{imports}x = {term.code}\nprint({shown.code})"
    return Solution(program=program, printed=shown.printed)


def parse_expression(text: str, unknown_code: Callable[[str], str] | None = None) -> Term:
    """The value and the code of an expression. Raises BadEquation.

    With `unknown_code`, from an unknown to its code, it may have unknowns, and is code for SymPy.
    """
    if len(text) > _MAX_CHARACTERS:
        raise BadEquation(f"is longer than {_MAX_CHARACTERS} characters")
    parser = _Parser(_tokens(text), unknown_code)
    try:
        return parser.parse()
    except ZeroDivisionError as error:
        raise BadEquation("divides by zero") from error
    except OverflowError as error:
        raise BadEquation(f"is too large: {error}") from error


def in_form_of(answer: str, value: Fraction, code: str) -> Shown | None:
    """How a program prints a value, which `code` has, in the form of the answer.

    None where that is not the answer. Raises BadEquation where the answer cannot be read.
    """
    expected = parse_expression(answer).number
    if num_bits(value) > _MAX_VALUE_BITS:  # Python has limits on the digits it writes
        raise BadEquation("the value is too large")
    try:
        shown_value, shown = _shown(value, code, answer.strip())
    except OverflowError as error:
        raise BadEquation("the value is too large") from error
    return shown if shown_value == expected else None


def _shown(value: Fraction, code: str, answer: str) -> tuple[Fraction, Shown]:
    if match := _PERCENTAGE.fullmatch(answer):
        code = code if code.isidentifier() else f"({code})"
        digits = len(match[1] or "")
        rounded = _rounded(100 * value, digits)
        if digits == 0:
            shown = Shown(code=f'f"{{100 * {code}}}%"', printed=f"{rounded}%")
            return rounded / 100, shown
        exact = rounded == 100 * value
        code = f"float(100 * {code})" if exact else f"round(float(100 * {code}), {digits})"
        return rounded / 100, Shown(code=f'f"{{{code}}}%"', printed=f"{float(rounded)}%")
    if match := _DECIMAL.fullmatch(answer):
        rounded = _rounded(value, len(match[1]))
        code = f"float({code})" if rounded == value else f"round(float({code}), {len(match[1])})"
        return rounded, Shown(code=code, printed=str(float(rounded)))
    return value, Shown(code=code, printed=str(value))


def _rounded(value: Fraction, digits: int) -> Fraction:
    """As Python's round of the float does it; whole percentages are not rounded."""
    if digits == 0:
        return value
    scaled = value * 10**digits
    return value if scaled.denominator == 1 else Fraction(str(round(float(value), digits)))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise BadEquation(f"{text[position:].strip()[:1]!r} is no part of an equation")
        token = match[1] or match[2] or ""
        if len(token) > _MAX_DIGITS:
            raise BadEquation(f"a number of more than {_MAX_DIGITS} digits")
        tokens += [token] if token else []
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[str], unknown_code: Callable[[str], str] | None) -> None:
        self._tokens = tokens
        self._unknown_code = unknown_code
        self._exact_type = "Rational" if unknown_code else "Fraction"
        self._position = 0
        self._depth = 0

    def parse(self) -> Term:
        term = self._sum()
        if self._next:
            raise BadEquation(f"{self._next!r} stands where an operator or the end should")
        return term

    @property
    def _next(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _take(self, *tokens: str) -> str:
        token = self._next
        if token not in tokens:
            return ""
        self._position += 1
        return token

    def _sum(self) -> Term:
        left = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            value = left.value + right.value if operator == "+" else left.value - right.value
            left = _join(left, operator, right, value, _SUM)
        return left

    def _product(self) -> Term:
        left = self._power()
        while operator := self._take("*", "/", ":") or self._implied_times():
            right = self._power()
            if operator == "implied" and not (left.has_unknowns or right.has_unknowns):
                raise BadEquation("a number stands before a bracket that has no unknown")
            if operator in "/:":
                left = self._quotient(left, right)
            else:
                left = _join(left, "*", right, left.value * right.value, _PRODUCT)
        return left

    def _implied_times(self) -> str:
        is_factor = self._next.isalpha() or self._next in ("(", "[")
        return "implied" if self._unknown_code and is_factor else ""

    def _power(self) -> Term:
        if self._take("+"):
            return self._nested(self._power)
        if self._take("-"):
            operand = self._nested(self._power)
            code = f"-{_within(operand, _SIGN)}"
            return Term(value=-operand.value, code=code, binding=_SIGN, is_int=operand.is_int)
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        exponent = self._nested(self._power)
        if exponent.number.denominator != 1 or not 0 <= exponent.number <= _MAX_EXPONENT:
            raise BadEquation(f"an exponent is no integer from 0 to {_MAX_EXPONENT}")
        code = f"{_within(base, _ATOM)} ** {_within(exponent, _POWER)}"
        is_int = base.is_int and exponent.is_int
        value = base.value ** int(exponent.number)
        return Term(value=value, code=code, binding=_POWER, is_int=is_int)

    def _postfix(self) -> Term:
        term = self._atom()
        while self._take("%"):
            term = self._quotient(term, _integer(100))
        return term

    def _atom(self) -> Term:
        if self._take("(", "["):
            term = self._nested(self._sum)
            if not self._take(")", "]"):
                raise BadEquation("a bracket is not closed")
            return term
        token = self._next
        if self._unknown_code and token.isalpha():
            return self._unknown(self._unknown_code)
        if not token[:1].isdigit():
            raise BadEquation(f"{token or 'the end'} stands where a number should")
        self._position += 1
        if "." in token:
            code = f'{self._exact_type}("{token}")'
            number = Term(value=Fraction(token), code=code, binding=_ATOM, is_int=False)
        else:
            number = _integer(int(token))
        if self._unknown_code or self._next not in ("(", "["):
            return number
        return self._mixed(number)

    def _unknown(self, code: Callable[[str], str]) -> Term:
        name = self._next
        if len(name) > 1:
            raise BadEquation(f"{name!r:.40} is no unknown of one letter")
        self._position += 1
        value = RationalFunction.unknown(name)
        return Term(value=value, code=code(name), binding=_ATOM, is_int=False)

    def _mixed(self, whole: Term) -> Term:
        """The integer in front of a bracket: a mixed number, for a product has its sign."""
        part = self._atom()
        if not whole.is_int or part.ratio is None or not 0 < part.number < 1:
            raise BadEquation("a number stands before a bracket that is no proper fraction")
        return _join(whole, "+", part, whole.value + part.value, _SUM)

    def _quotient(self, left: Term, right: Term) -> Term:
        value = left.value / right.value
        if not (left.is_int and right.is_int):
            return _join(left, "/", right, value, _PRODUCT)
        code = f"{self._exact_type}({left.code}, {right.code})"
        written = left.code.isdigit() and right.code.isdigit()
        ratio = (int(left.code), int(right.code)) if written else None
        return Term(value=value, code=code, binding=_ATOM, is_int=False, ratio=ratio)

    def _nested(self, parse: Callable[[], Term]) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadEquation("is nested too deeply")
        term = parse()
        self._depth -= 1
        return term


def _integer(number: int) -> Term:
    return Term(value=Fraction(number), code=str(number), binding=_ATOM, is_int=True)


def _join(
    left: Term, operator: str, right: Term, value: Fraction | RationalFunction, binding: int
) -> Term:
    # Exact arithmetic: a sum or product to the right of its own operator needs no brackets.
    least = binding + 1 if operator in "-/" else binding
    code = f"{_within(left, binding)} {operator} {_within(right, least)}"
    return Term(value=value, code=code, binding=binding, is_int=left.is_int and right.is_int)


def _within(term: Term, least_binding: int) -> str:
    return term.code if term.binding >= least_binding else f"({term.code})"
