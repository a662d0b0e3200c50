"""Equations of word problems, and the readers of Ape210K and Math23K that make programs of them."""

import contextlib
import io
import time
from fractions import Fraction

import pytest

from dsm_engine.data.example import ExampleOmitted
from dsm_engine.data.sources.equations import BadEquation, parse_expression, solve

ROW = {
    "id": "971711",
    "segmented_text": "电 冰 箱",
    "original_text": "洗衣机和电冰箱共6000元，求洗衣机的价钱．",
    "equation": "x=6000/(1+(3/5))",
    "ans": "3750",
}


def run(program: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    return printed.getvalue().removesuffix("\n")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", Fraction(14)),
        ("(2+3)*4-[1-(2-3)]", Fraction(18)),
        ("8-3-2", Fraction(3)),
        ("8/4/2", Fraction(1)),
        ("4:(5*(1+(1/5)))", Fraction(2, 3)),
        ("2.75-1(5/6)", Fraction(11, 12)),
        ("2*1(1/2)", Fraction(3)),
        ("12/1(1/2)", Fraction(8)),
        ("4((1)/(2))", Fraction(9, 2)),
        ("80%*15%", Fraction(12, 100)),
        ("12.5%", Fraction(1, 8)),
        ("(20+5)%", Fraction(1, 4)),
        ("2^3**2", Fraction(512)),
        ("2*3^2", Fraction(18)),
        ("-2^2+5", Fraction(1)),
        ("3--2", Fraction(5)),
        ("+80*+5-5", Fraction(395)),
        ("(1/2)**3", Fraction(1, 8)),
        ("(7-5)**(6/3)", Fraction(4)),
        ("0.1+0.2", Fraction(3, 10)),
        (" 1 + 05 ", Fraction(6)),
    ],
)
def test_an_expression_has_its_exact_value_and_so_has_its_code(expression, value):
    term = parse_expression(expression)
    assert term.value == value
    assert eval(term.code, {"Fraction": Fraction}) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "x", "1+", "(1", "1)", "1 2", "2(3+4)", "2(5/4)", "0.5(1/2)", "(1/2)(1/3)", "5x=3"),
        *("1/0", "1/(2-2)", "2^0.5", "2^-1", "2^65", "9^9^9", "1..2", ".5", "二", "import os"),
        *("1" * 101, "(" * 500, "-" * 500, "((9^60)^60)^60", "0^-1"),
    ],
)
def test_what_is_no_equation_is_refused(expression):
    with pytest.raises(BadEquation):
        parse_expression(expression)


@pytest.mark.parametrize(
    ("equation", "answer", "printed"),
    [
        ("x=44*20", "880", "880"),
        ("x=135/3", "45", "45"),
        ("x=5/6+1", "1(5/6)", "11/6"),
        ("x=1/2", "((1)/(2))", "1/2"),
        ("x=120*80%*15%", "14.4", "14.4"),
        ("x=10/3", "3.33", "3.33"),
        ("x=3-5", "-2", "-2"),
        ("x=4/5", "80%", "80%"),
        ("x=1/8", "12.5%", "12.5%"),
        ("x=1/3", "33.3%", "33.3%"),
        ("(60*45)/100", "27", "27"),
    ],
)
def test_the_program_prints_the_answer_in_its_own_form(equation, answer, printed):
    solution = solve(equation, answer)
    assert solution is not None
    assert solution.printed == printed
    assert run(solution.program) == printed


@pytest.mark.parametrize(
    ("equation", "answer"),
    [("x=10/3", "3"), ("x=10/3", "3.34"), ("x=1/3", "33%"), ("x=200*(1+20%)*(1-80%)", "192")],
)
def test_another_value_is_a_mismatch(equation, answer):
    assert solve(equation, answer) is None


@pytest.mark.parametrize(("num_factors", "answer"), [(5, "1.0"), (80, "1"), (80, "1%")])
def test_a_value_too_large_to_be_shown_is_refused(num_factors, answer):
    with pytest.raises(BadEquation, match="too large"):
        solve("x=" + "*".join(["10^64"] * num_factors), answer)


@pytest.mark.parametrize(
    "expression",
    [
        "+".join(f"1/(9^64+{i})" for i in range(70)),
        "-".join(f"1/(9^64+{i})" for i in range(70)),
        "*".join(["9^64"] * 70),
        "1" + "/(1/3)^64" * 70,
        "1" + "%" * 900,
    ],
    ids=["sum", "difference", "product", "quotient", "percentage"],
)
def test_every_operation_is_limited_in_the_size_of_its_value(expression):
    with pytest.raises(BadEquation, match="too large"):
        parse_expression(f"0*({expression})")


@pytest.mark.parametrize("field", ["equation", "ans"])
@pytest.mark.parametrize(
    "text",
    ["+".join(f"1/{1_000_003 + 2 * i}" for i in range(200_000)), "1" + "%" * 2_000_000],
    ids=["sum", "percentage"],
)
def test_a_line_of_two_megabytes_is_a_bad_equation_at_once(write_records, fault_of, field, text):
    path = write_records({**ROW, field: text})
    begin = time.process_time()
    fault = fault_of(path, "ape210k")
    assert fault.cause == "bad_equation"
    assert "longer than 1000 characters" in str(fault)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("reader", ["ape210k", "math23k"])
def test_a_row_becomes_a_program_of_thought(write_records, read_examples, reader):
    (example,) = read_examples(write_records(ROW), reader)
    (block,) = example.blocks
    assert block.kind == "program"
    assert block.text == (
        "from fractions import Fraction\n\nx = 6000 / (1 + Fraction(3, 5))\nprint(x)"
    )
    assert (example.id, example.question) == (f"{reader}/971711", ROW["original_text"])
    assert (example.answer, example.language, example.format) == ("3750", "zh", "pot")
    assert (example.source, example.licence) == (reader, "MIT")


@pytest.mark.parametrize(
    ("change", "cause", "omitted"),
    [
        ({"ans": "3751"}, "answer_mismatch", True),
        ({"ans": "许多"}, "bad_equation", True),
        ({"ans": None}, "bad_equation", True),
        ({"equation": "x=6000/"}, "bad_equation", True),
        ({"equation": ""}, "missing_answer", False),
        ({"original_text": None}, "missing_question", False),
        ({"equation": 5}, "bad_value", False),
    ],
)
def test_rows_without_a_checked_program_have_their_cause(
    write_records, fault_of, change, cause, omitted
):
    fault = fault_of(write_records({**ROW, **change}), "ape210k")
    assert fault.cause == cause
    assert isinstance(fault, ExampleOmitted) is omitted


@pytest.mark.parametrize(
    ("reader", "file", "num_kept", "dropped"),
    [
        ("ape210k", "ape210k/valid.ape.json.gz", 4999, {"answer_mismatch": 1}),
        ("ape210k", "ape210k/test.ape.json.gz", 4998, {"answer_mismatch": 2}),
        ("math23k", "math23k/math23k_test.json.gz", 1000, {}),
    ],
)
def test_every_published_equation_gives_a_program_that_prints_its_answer(
    read_published, reader, file, num_kept, dropped
):
    kept, found = read_published(file, reader)
    assert (len(kept), found) == (num_kept, dropped)
    assert len({example.id for example in kept}) == num_kept
    assert all(run(example.blocks[0].text) == example.answer for example in kept)
