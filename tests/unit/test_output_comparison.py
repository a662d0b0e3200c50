"""Which outputs are the same: white space, roundings, truncation, sets; and which are not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.data.quality.output_comparison import records_error, same_error, same_output
from dsm_engine.programs import shown_result
from dsm_engine.sandbox import ProgramResult


@pytest.mark.parametrize(
    ("recorded", "printed"),
    [
        ("5\n", "5"),
        ("a\r\nb", "a\nb"),
        ("[1,\n 2]", "[1, 2]"),
        ("3.00000000000000", "3"),
        ("0.333333333333333", "0.3333333333333333"),
        ("{x: 1.50000000000000}", "{x: 1.5}"),
        ("1e-17", "0.0"),
        ("{3, 1, 2}", "{1, 2, 3}"),
        ("5.0", "np.float64(5.0)"),
        ("(True, 2)", "(np.True_, np.int64(2))"),
        ("<empty_execution>", ""),
        ("[[1  2]\n [3  4]]", "[[1 2] [3 4]]"),
        ("{(1, 2), (3, 4)}", "{(3, 4), (1, 2)}"),
    ],
)
def test_the_same(recorded: str, printed: str) -> None:
    assert same_output(recorded, printed)


@pytest.mark.parametrize(
    ("recorded", "printed"),
    [
        ("5", "6"),
        ("5", ""),
        ("", "5"),
        ("5", "-5"),
        ("5", "55"),
        ("x1", "x2"),
        ("3.14", "3.15"),
        ("100000001", "100000002"),
        ("[1, 2]", "[2, 1]"),
        ("{1, 2}", "{1, 3}"),
        ("True", "False"),
        ("1 2", "1.2"),
        ("1. 2", "1.2"),
        ("1 2", "12"),
        ("12 3", "1 23"),
        ("[1 2]", "[12]"),
        ("1 1/2", "11/2"),
        ("1 -2", "1-2"),
        ("1, 234", "1,234"),
        ("3\n5", "35"),
        ("1e-10", "9e-10"),
        ("0.0000000001", "0.0000000009"),
        ("{(1, 2), (3, 4)}", "{(1, 4), (3, 2)}"),
    ],
)
def test_not_the_same(recorded: str, printed: str) -> None:
    assert not same_output(recorded, printed)


@given(st.text(alphabet="ab 12.\n", max_size=300), st.text(alphabet="ab12", min_size=1, max_size=9))
def test_what_the_tool_loop_shows_is_what_was_printed(printed: str, other: str) -> None:
    shown = shown_result(ProgramResult(stdout=printed, error="", timed_out=False))
    assert same_output(shown, printed)
    assert not same_output(shown, f"z{other}{printed}")


def test_long_white_space_is_compared_at_once() -> None:
    started = time.process_time()
    assert same_output("a" + " " * 60_000 + "b", "a b")
    assert not same_output("a" + " " * 60_000 + "b", "ab")
    assert same_error("Error: a" + " " * 60_000 + "b", "a b")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Runtime errors: invalid syntax", True),
        ("ValueError: no", True),
        ("Timeout", True),
        ("Traceback (most recent call last):\n...", True),
        ("The error is 5", False),
        ("12", False),
    ],
)
def test_errors_are_told_from_outputs(text: str, expected: bool) -> None:
    assert records_error(text) == expected
