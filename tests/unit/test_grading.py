r"""Grading: which answer a text gives, and which answers are the same."""

import pytest

from dsm_engine import grading
from dsm_engine.grading import boxed_answers, extract_answer, grade


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (r"so \boxed{72}.", ["72"]),
        (r"\boxed{\frac{1}{2}} and \boxed{ 3 }", [r"\frac{1}{2}", "3"]),
        (r"\boxed{\{1, {2}\}}", [r"\{1, {2}\}"]),
        (r"\boxed {x} \fbox{y}", ["x"]),
        (r"\fboxed{y}", ["y"]),
        (r"\boxed 5.", ["5"]),
        (r"cut off \boxed{\frac{1}{2}", []),
        (r"\boxed{a\}", []),
        ("no box", []),
        (r"\boxed{}", [""]),
    ],
)
def test_boxes_are_found_with_nested_braces(text: str, answers: list[str]) -> None:
    assert boxed_answers(text) == answers


@pytest.mark.parametrize(
    ("text", "output", "answer"),
    [
        (r"final answer is $\frac{2}{3}$. I hope it is correct. \boxed{1}", "", r"\frac{2}{3}"),
        (r"\boxed{1} then \boxed{2}. The answer is 3.", "4", "2"),
        ("The answer is 3.5.", "4", "3.5"),
        ("The answer is: 1,000 .", "", "1,000"),
        ("所以答案是12。", "4", "12"),
        ("答案为：7\n", "", "7"),
        ("We print 5.", "4", "4"),
        ("", "\\boxed{9}", "9"),
        ("First 3, then 4 apples remain", "", "4"),
        ("It falls to -2, as said", "", "-2"),
        ("I do not know", "", ""),
        ("", "", ""),
    ],
)
def test_the_answer_is_looked_for_in_the_papers_order(text: str, output: str, answer: str) -> None:
    assert extract_answer(text, program_output=output) == answer


def test_fenced_blocks_are_not_prose() -> None:
    text = ' ```python\nprint(r"\\boxed{1}")\n```\n```output\n\\boxed{1}\n```\nSo 2 remain'
    assert extract_answer(text) == "2"
    assert extract_answer(text, program_output="\\boxed{1}") == "1"
    assert extract_answer(" ```python\nprint(5)\n") == ""


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("72", "72"),
        (" 72. ", "72"),
        ("72.0", "72"),
        ("1,234", "1234"),
        ("$5$", "5"),
        (r"\$5", "5"),
        ("10{,}000", "10000"),
        ("0.5", "1/2"),
        ("17.999999999999996", "18"),
        ("+3", "3"),
        ("−3", "-3"),
        ("x + 1", "x+1"),
        ("12。", "12"),
    ],
)
def test_equal_answers_are_cheap_to_see(
    predicted: str, gold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "_math_verify", lambda *_: pytest.fail("not needed"))
    assert grade(predicted, gold)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("73", "72"),
        ("", "72"),
        ("72", ""),
        ("1000000001", "1000000000"),
        ("0.333", "1/3"),
        ("1/0", "1"),
        ("7200", "72"),
        ("apples", "72"),
    ],
)
def test_other_answers_are_wrong(predicted: str, gold: str) -> None:
    assert not grade(predicted, gold)


@pytest.mark.parametrize(
    ("predicted", "gold", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac{3}{4}", r"\frac34", True),
        ("x^2 y^3", "y^3 x^2", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"\frac{1}{2}", "0.6", False),
        ("x+1", "x+2", False),
    ],
)
def test_formulas_are_compared_by_math_verify(predicted: str, gold: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert grade(predicted, gold) is same


@pytest.mark.parametrize("bomb", ["9^9^9^9", "9^{9^{9^9}}", "9**9**9", "(9^9)^{9}", "99999999!"])
def test_bombs_are_wrong_at_once(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("math_verify.parse", lambda *_, **__: pytest.fail("parsed a bomb"))
    assert not grade(bomb, "x+1")
    assert not grade("x" * 501, "x+1")


def test_harmless_powers_are_no_bombs() -> None:
    assert not any(
        grading._COSTLY.search(text) for text in ("x^2 y^3", "2^{10}", "3x^2-2x^3", "5!")
    )
