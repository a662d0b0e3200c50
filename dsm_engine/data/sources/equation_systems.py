"""Systems of equations of word problems, as SymPy programs that print the published answers.

The equations are solved here in fractions, by elimination: SymPy is not imported, and nothing of
the text is executed. A system is taken only where all its real solutions are known, and the program
has what it takes to print the one that was published: unknowns that are positive, or real, or of
two roots the smaller or the larger one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dsm_engine.data.sources.equations import (
    BadEquation,
    Shown,
    Solution,
    Term,
    in_form_of,
    parse_expression,
    solve,
)
from dsm_engine.data.sources.polynomials import (
    RationalFunction,
    Unsolvable,
    solve_polynomials,
)

_WHOLE_DECIMAL = re.compile(r"(?<=\d)\.0+(?!\d)")
_SOLVED_FOR = re.compile(
    r"\s*(?P<left_name>[A-Za-z])\s*=(?P<right>[^A-Za-z=]+)"
    r"|(?P<left>[^A-Za-z=]+)=\s*(?P<right_name>[A-Za-z])\s*"
)
_LETTERS = re.compile("[A-Za-z]+")
_MAX_EQUATIONS = 8
_MAX_TARGETS = 16
_MAX_CHARACTERS = 400  # of an equation, a target or an answer


class NotSolved(BadEquation):
    """The system has no solution that is found here, or several that nothing tells apart."""


def solve_system(
    equations: Sequence[str], answers: Sequence[str], targets: Sequence[str] = ()
) -> Solution | None:
    """The program of equations such as `2*m-n=1` and `m+n=-64`, printing the answers in order.

    `targets` are the expressions asked for, by default the unknowns; each answer is the value of
    one of them, in any order. A single equation solved for its unknown is `solve`'s. None where
    the equations give other values. Raises BadEquation where something cannot be read, and
    NotSolved where the solutions are not all rational and found, or the answers fit several.
    """
    if any(len(text) > _MAX_CHARACTERS for text in (*equations, *targets, *answers)):
        raise BadEquation(f"is longer than {_MAX_CHARACTERS} characters")
    if not 1 <= len(equations) <= _MAX_EQUATIONS:
        raise BadEquation(f"{len(equations)} equations, where 1 to {_MAX_EQUATIONS} are read")
    if not answers or max(len(targets), len(answers)) > _MAX_TARGETS:
        raise BadEquation(f"not 1 to {_MAX_TARGETS} answers")
    equations = [_WHOLE_DECIMAL.sub("", equation) for equation in equations]
    if len(equations) == len(answers) == 1 and (match := _SOLVED_FOR.fullmatch(equations[0])):
        name = match["left_name"] or match["right_name"]
        if tuple(targets) in ((), (name,)):
            return solve(match["right"] or match["left"], answers[0])
    try:
        return _System.parse(equations, targets).solution(answers)
    except Unsolvable as error:
        raise NotSolved(str(error)) from error
    except OverflowError as error:
        raise BadEquation(f"is too large: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _System:
    sides: list[tuple[Term, Term]]
    differences: list[RationalFunction]
    """Of the sides; the equations say that they are 0."""
    unknowns: list[str]
    targets: list[str]

    @classmethod
    def parse(cls, equations: Sequence[str], targets: Sequence[str]) -> "_System":
        equations, targets = _with_products(equations, targets)
        sides = [_parse_sides(equation) for equation in equations]
        differences = [RationalFunction.of(left.value) - right.value for left, right in sides]
        if any(not difference.numerator.terms for difference in differences):
            raise BadEquation("an equation that says nothing")
        unknowns = list(dict.fromkeys(_LETTERS.findall(" ".join(equations))))
        if not unknowns:
            raise BadEquation("has no unknown")
        if strange := set(_LETTERS.findall(" ".join(targets))) - set(unknowns):
            raise BadEquation(f"{min(strange)!r:.40} is asked for, and stands in no equation")
        return cls(
            sides=sides,
            differences=differences,
            unknowns=unknowns,
            targets=list(targets or unknowns),
        )

    def solution(self, answers: Sequence[str]) -> Solution | None:
        polynomials = [difference.numerator for difference in self.differences]
        solutions = [
            values
            for values in solve_polynomials(polynomials, self.unknowns)
            if all(difference.denominator.at(values) for difference in self.differences)
        ]
        fitting = [
            (values, printed)
            for values in solutions
            if (printed := self._printed(values, answers, self._solved_code))
        ]
        if len(fitting) > 1:
            raise NotSolved("several solutions give the answers")
        if not fitting:
            return self._both_roots(solutions, answers)
        ((values, printed),) = fitting
        assumption, choice = self._choice(values, solutions)
        return self._program(assumption, f"solution = {choice}", printed)

    def _choice(
        self, chosen: dict[str, Fraction], solutions: Sequence[dict[str, Fraction]]
    ) -> tuple[str, str]:
        """What is assumed of the unknowns, and the code that leaves the chosen solution."""
        first = "solve({})[0]" if self._one_unknown else "solve({}, dict=True)[0]"
        if all(difference.numerator.degree == 1 for difference in self.differences):
            return "", first
        if [values for values in solutions if min(values.values()) > 0] == [chosen]:
            return ", positive=True", first
        if solutions == [chosen]:
            return ", real=True", first
        if not self._one_unknown:
            raise NotSolved("nothing tells the solution from others")
        (name,) = self.unknowns
        largest = max(values[name] for values in solutions)
        return "", "max(solve({}))" if chosen[name] == largest else "min(solve({}))"

    def _both_roots(
        self, solutions: Sequence[dict[str, Fraction]], answers: Sequence[str]
    ) -> Solution | None:
        """The program that prints the two solutions of an equation, if those are the answers."""
        if not (self._one_unknown and len(self.targets) == 1):
            return None
        if not len(solutions) == len(answers) == 2:
            return None
        (name,) = self.unknowns
        for reverse, option in ((False, ""), (True, ", reverse=True")):
            printed: list[Shown] = []
            roots = sorted(solutions, key=lambda values: values[name], reverse=reverse)
            for values, answer, code in zip(roots, answers, ("first", "second"), strict=True):
                printed += self._printed(values, [answer], lambda _, code=code: code) or []
            if len(printed) == 2:
                return self._program("", f"first, second = sorted(solve({{}}){option})", printed)
        return None

    def _printed(
        self, values: dict[str, Fraction], answers: Sequence[str], code: Callable[[str], str]
    ) -> list[Shown] | None:
        """How each answer is printed as one of the targets, and none of them twice."""
        targets = [parse_expression(target, code) for target in self.targets]
        printed: list[Shown] = []
        for answer in answers:
            for target in targets:
                if shown := in_form_of(answer, _value(target, values), target.code):
                    printed.append(shown)
                    targets.remove(target)
                    break
            else:
                return None
        return printed

    @property
    def _one_unknown(self) -> bool:
        return len(self.unknowns) == len(self.sides) == 1

    def _solved_code(self, name: str) -> str:
        return "solution" if self._one_unknown else f"solution[{name}]"

    def _program(self, assumption: str, solving: str, printed: Sequence[Shown]) -> Solution:
        equations = [f"Eq({left.code}, {right.code})" for left, right in self.sides]
        names = ", ".join(self.unknowns)
        if self._one_unknown:
            lines = [solving.format(f"{equations[0]}, {names}")]
        else:
            solve_all = solving.format(f"equations, [{names}]")
            lines = ["equations = [", *(f"    {code}," for code in equations), "]", solve_all]
        values = ", ".join(shown.code for shown in printed)
        separator = ', sep=", "' if len(printed) > 1 else ""
        lines.append(f"print({values}{separator})")
        rational = "Rational, " if any("Rational(" in line for line in lines) else ""
        lines = [
            f"from sympy import Eq, {rational}solve, symbols",
            "",
            f'{names} = symbols("{" ".join(self.unknowns)}"{assumption})',
            *lines,
        ]
        text = ", ".join(shown.printed for shown in printed)
        return Solution(program="\n".join(lines), printed=text)


def _parse_sides(equation: str) -> tuple[Term, Term]:
    left, sign, right = equation.partition("=")
    if not sign:
        raise BadEquation("has no equals sign")
    return parse_expression(left, str), parse_expression(right, str)


def _with_products(equations: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """With `x*y` for `xy` where both letters are unknowns by themselves as well."""
    words = {word for text in equations for word in _LETTERS.findall(text)}
    unknowns = {word for word in words if len(word) == 1}

    def product(match: re.Match[str]) -> str:
        return "*".join(match[0]) if set(match[0]) <= unknowns else match[0]

    return (
        [_LETTERS.sub(product, text) for text in equations],
        [_LETTERS.sub(product, text) for text in targets],
    )


def _value(target: Term, values: dict[str, Fraction]) -> Fraction:
    function = RationalFunction.of(target.value)
    denominator = function.denominator.at(values)
    if denominator == 0:
        raise BadEquation("divides by zero")
    return function.numerator.at(values) / denominator
