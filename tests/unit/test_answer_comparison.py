"""Which final answers are the given one: units, names, parts and roundings; and which are not."""

import pytest

from dsm_engine.data.quality.answer_comparison import (
    among_answers,
    number_in_words,
    same_answer,
)


@pytest.mark.parametrize(
    ("found", "given"),
    [
        (r"5 \text{ cm}", "5"),
        (r"x = 5, y = 7", "5"),
        (r"x \approx 5.25", "5.25"),
        (r"\text{Number of cups: } 5", "5"),
        (r"\text{about 5 cups}", "5"),
        (r"3 \text{ cups and } 5 \text{ cans}", "5"),
        ("1,400", "1400"),
        ("no solution", "no solution"),
    ],
)
def test_the_given_answer_is_found_among_names_units_and_parts(found: str, given: str) -> None:
    assert among_answers(found, given)


@pytest.mark.parametrize(
    ("found", "given"),
    [
        (r"\sqrt{3}", "3"),
        (r"-\sqrt{3}", "3"),
        (r"2\pi", "2"),
        (r"\frac{\pi}{4}", "4"),
        (r"\frac{3}{x}", "3"),
        (r"\sin 30", "30"),
        (r"\log_{2} x", "2"),
        (r"x \leq 5", "5"),
        ("x <= 5", "5"),
        ("x != 5", "5"),
        (r"x \neq 5", "5"),
        ("not 5", "5"),
        (r"\text{not } 5", "5"),
        ("7, not 5", "5"),
        ("3:4", "4"),
        ("3,5", "35"),
        ("5 cm^2", "2"),
    ],
)
def test_a_number_inside_another_value_is_not_the_answer(found: str, given: str) -> None:
    assert not among_answers(found, given)


@pytest.mark.parametrize(
    ("found", "given", "expected"),
    [
        ("5", "5.0", True),
        ("5.0", "5", True),
        ("1e5", "100000", True),
        ("5.04", "5.0", False),
        ("4.96", "5.0", False),
        ("5.0", "4.96", False),
        ("0.04", "0.0", False),
        ("0.004", "0.00", False),
        ("1400", "1e3", False),
        ("124", "1.2e2", False),
        ("1.4e-5", "1e-5", False),
        ("1.44e-5", "1.4e-5", True),
        ("5.04", "5.00", False),
        ("5.004", "5.00", True),
        ("0.33", "1/3", True),
        ("1/3", "0.33", True),
    ],
)
def test_roundings_are_the_same_only_to_decimals_that_are_given(
    found: str, given: str, expected: bool
) -> None:
    assert same_answer(found, given) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 12 apples.", "12"),
        ("cost: $1,250.50", "1,250.50"),
        ("x = -3", "-3"),
        ("12%", "12"),
        ("6/2", "6/2"),
        ("sqrt 3", ""),
        ("2 pi", ""),
        ("3x", ""),
        ("x1", ""),
        ("x-3", ""),
        ("5 not 7", ""),
        ("isn't 3", ""),
        ("3 hours 20 minutes", ""),
        ("(3)", ""),
        ("words", ""),
    ],
)
def test_a_number_among_words_is_taken_only_where_nothing_changes_it(
    text: str, expected: str
) -> None:
    assert number_in_words(text) == expected
