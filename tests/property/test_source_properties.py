"""Readers' parsers against plain ones: JSON cut at any byte, equations against fractions,
systems against the solutions they are made from, segmented text against its characters."""

import ast
import json
import re
import tempfile
from fractions import Fraction
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.data.example import detect_language
from dsm_engine.data.sources import json_values
from dsm_engine.data.sources.equation_systems import solve_system
from dsm_engine.data.sources.equations import BadEquation, parse_expression
from dsm_engine.data.sources.mwptoolkit import join_segments
from dsm_engine.data.sources.polynomials import Polynomial, Unsolvable, solve_polynomials
from dsm_engine.data.sources.records import read_records
from dsm_engine.errors import DsmError

texts = st.text(st.sampled_from('"\\{}[],:\n x二'), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
records = st.lists(st.dictionaries(texts, values, min_size=1, max_size=3), max_size=4)


def rows_of(content: bytes, num_bytes: int) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        with mock.patch.object(json_values, "BUFFER_BYTES", num_bytes):
            return [row.raw for row in read_records(path)]


@given(records, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_a_list_gives_the_records_a_plain_parser_gives(values, indent, ascii, num_bytes):
    content = json.dumps(values, indent=indent, ensure_ascii=ascii).encode()
    assert [json.loads(raw) for raw in rows_of(content, num_bytes)] == values


@given(records, st.integers(1, 9))
def test_objects_over_lines_give_the_records_a_plain_parser_gives(values, num_bytes):
    content = b"\n".join(json.dumps(value, indent=1).encode() for value in values)
    assert [json.loads(raw) for raw in rows_of(content, num_bytes)] == values


@given(st.text(st.sampled_from('[]{}",\\\n a1'), max_size=20), st.integers(1, 5))
def test_the_size_of_the_buffer_changes_nothing(text, num_bytes):
    results = []
    for size in (num_bytes, 1 << 20):
        try:
            results.append(rows_of(text.encode(), size))
        except DsmError as error:
            results.append(str(error).rpartition(":")[2])
    assert results[0] == results[1]


def written(operands) -> st.SearchStrategy[tuple[str, Fraction]]:
    binary = st.tuples(operands, st.sampled_from("+-*"), operands).map(
        lambda parts: (
            f"({parts[0][0]}){parts[1]}({parts[2][0]})",
            {
                "+": parts[0][1] + parts[2][1],
                "-": parts[0][1] - parts[2][1],
                "*": parts[0][1] * parts[2][1],
            }[parts[1]],
        )
    )
    quotient = (
        st.tuples(operands, operands)
        .filter(lambda pair: pair[1][1] != 0)
        .map(lambda pair: (f"[{pair[0][0]}]/[{pair[1][0]}]", pair[0][1] / pair[1][1]))
    )
    return binary | quotient


numbers = st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))
decimals = st.integers(0, 999).map(lambda n: (f"{n // 10}.{n % 10}", Fraction(n, 10)))
percentages = st.integers(0, 99).map(lambda n: (f"{n}%", Fraction(n, 100)))
mixed = st.tuples(st.integers(0, 9), st.integers(1, 8)).map(
    lambda pair: (f"{pair[0]}({pair[1]}/9)", pair[0] + Fraction(pair[1], 9))
)
expressions = st.recursive(numbers | decimals | percentages | mixed, written, max_leaves=8)


@given(expressions)
def test_an_expression_and_its_code_have_the_value_of_its_parts(expression):
    text, value = expression
    term = parse_expression(text)
    assert term.value == value
    assert eval(term.code, {"Fraction": Fraction}) == value


@given(st.text(st.sampled_from("0123456789.+-*/:^()[]% x"), max_size=30))
def test_any_text_is_an_expression_or_is_refused(text):
    try:
        term = parse_expression(text)
    except BadEquation:
        return
    assert eval(term.code, {"Fraction": Fraction}) == term.value


numbers = st.fractions(-9, 9, max_denominator=4)


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=3, max_size=3),
    st.data(),
)
def test_a_linear_system_has_the_solution_it_was_made_from(matrix, data):
    values = data.draw(st.fixed_dictionaries(dict.fromkeys("xyz", numbers)))
    polynomials = [linear(dict(zip("xyz", row, strict=True)), values) for row in matrix]
    (a, b, c), (d, e, f), (g, h, i) = matrix
    if a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g):
        assert solve_polynomials(polynomials, "xyz") == [values]
    else:
        with pytest.raises(Unsolvable):
            solve_polynomials(polynomials, "xyz")


def linear(coefficients: dict[str, int], values: dict[str, Fraction]) -> Polynomial:
    """A polynomial that is 0 at the values."""
    constant = -sum(coefficients[name] * values[name] for name in values)
    terms = {((name, 1),): Fraction(number) for name, number in coefficients.items() if number}
    return Polynomial(terms) + Polynomial.constant(Fraction(constant))


@given(numbers, numbers, numbers, numbers)
def test_a_quadratic_has_the_roots_it_was_made_from_in_every_unknown(one, other, factor, shift):
    x, y = (Polynomial.unknown(name) for name in "xy")
    constant = Polynomial.constant
    quadratic = (x - constant(one)) * (x - constant(other))
    line = y - x * constant(factor) - constant(shift)
    expected = [{"x": root, "y": factor * root + shift} for root in {one, other}]
    found = solve_polynomials([quadratic, line], "xy")
    assert len(found) == len(expected)
    assert all(solution in found for solution in expected)


signs = st.text(st.sampled_from("xyab0123.=+-*/:^%()[] ;>é"), max_size=14)


@given(st.lists(signs | signs.map("x={}".format) | signs.map("x+y=3*{}".format), max_size=3), signs)
def test_whatever_stands_there_for_equations_is_solved_or_refused(equations, answer):
    try:
        solution = solve_system(equations, [answer or "1"])
    except BadEquation:
        return
    assert solution is None or ast.parse(solution.program)


words = st.text(st.sampled_from("ab19.,%$'?；人(-"), min_size=1, max_size=4)


@given(st.lists(words | st.sampled_from(["n't", "'s", "``", "-LRB-", "$", ".", ","]), min_size=1))
def test_joining_segments_changes_white_space_alone(segments):
    joined = join_segments(" ".join(segments))
    if detect_language(" ".join(segments)) == "en":
        characters = {"``": '"', "''": '"', "-LRB-": "("}
        segments = [characters.get(segment, segment) for segment in segments]
    assert joined.replace(" ", "") == "".join(segments).replace(" ", "")
    digits = re.compile(r"\d+(?:\.\d+)?")
    assert digits.findall(joined) == digits.findall(" ".join(segments))
