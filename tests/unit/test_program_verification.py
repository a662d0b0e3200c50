"""Verification of examples: each cause, what passes, and programs in the sandbox."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dsm_engine.data.example import Block, Example, ExampleFault, Format
from dsm_engine.data.quality.program_cache import ProgramCache
from dsm_engine.data.quality.program_verification import ProgramVerifier, verification_sandbox
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.sandbox import ProgramResult, Sandbox, sandbox_status

STATUS = sandbox_status()
needs_bwrap = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)


def text(content: str) -> Block:
    return Block(kind="text", text=content)


def program(code: str) -> Block:
    return Block(kind="program", text=code)


def output(content: str) -> Block:
    return Block(kind="output", text=content)


def example(format: Format, *blocks: Block, answer: str = "", notebook: bool = False) -> Example:
    return Example(
        id="test",
        question="?",
        blocks=blocks,
        answer=answer,
        language="en",
        format=format,
        source="test",
        notebook=notebook,
    )


def result(stdout: str = "", error: str = "", *, timed_out: bool = False) -> ProgramResult:
    return ProgramResult(stdout=stdout, error=error, timed_out=timed_out)


class Runner:
    """Gives what a function says each program does, and remembers what was run."""

    conditions = "stub"

    def __init__(self, outcome: Callable[[str], ProgramResult]) -> None:
        self.outcome = outcome
        self.ran: list[str] = []

    def run(self, programs: Sequence[str]) -> list[ProgramResult]:
        self.ran += programs
        return [self.outcome(program) for program in programs]


class NoRunner(Runner):
    """Fails the test where anything is run."""

    def __init__(self) -> None:
        super().__init__(lambda program: pytest.fail(f"ran {program!r}"))


def verify(given: Example, *results: ProgramResult) -> ExampleFault | None:
    outcomes = iter(results)
    (fault,) = ProgramVerifier(Runner(lambda _: next(outcomes))).verify([given])
    return fault


def cause(given: Example, *results: ProgramResult) -> str | None:
    fault = verify(given, *results)
    return None if fault is None else fault.cause


def test_a_chain_of_thought_is_not_run() -> None:
    given = example("cot", text(r"So \boxed{4}."), answer="5")
    verifier = ProgramVerifier(NoRunner())
    assert verifier.verify([given, given]) == [None, None]
    assert verifier.counts.examples == 0


@pytest.mark.parametrize(
    ("printed", "answer", "expected"),
    [
        ("12\n", "12", None),
        ("12.0\n", "12", None),
        ("first 3\nso 12\n", "12", None),
        ("The answer is 12 apples.\n", "12", None),
        ("4.23456789\n", "4.23", None),
        ("0.125\n", "0.13", None),  # halves either way
        ("0.125\n", "0.12", None),
        ("2.0107452e-06\n", "2.0107e-06", None),
        ("2.0109e-06\n", "2.0107e-06", "answer_mismatch"),
        ("6e-7\n", "0.0000006", None),
        ("13\n", "12", "answer_mismatch"),
        ("12.4\n", "12", "answer_mismatch"),
        ("4.26\n", "4.2", "answer_mismatch"),
        ("(12, 13)\n", "12", "answer_mismatch"),
        ("(13, 12)\n", "12", "answer_mismatch"),
        ("sqrt(12)\n", "12", "answer_mismatch"),
        ("5*sqrt(12)\n", "12", "answer_mismatch"),
        ("x**12\n", "12", "answer_mismatch"),
        ("2**12\n", "12", "answer_mismatch"),
        ("(x - 1)*(x - 12)\n", "12", "answer_mismatch"),
        ("13 + 12*I\n", "12", "answer_mismatch"),
        ("25 cm^12\n", "12", "answer_mismatch"),
        ("answer is 13, not 12\n", "12", "answer_mismatch"),
        ("No solution for n=12\n", "12", "answer_mismatch"),
        ("cost = 12 dollars\n", "12", None),
        ("-12\n", "12", "answer_mismatch"),
        ("anything\n", "", None),
        ("", "", "no_output"),
        (" \n", "12", "no_output"),
    ],
)
def test_what_a_program_of_thought_prints_is_its_answer(
    printed: str, answer: str, expected: str | None
) -> None:
    given = example("pot", program("print(x)"), answer=answer)
    assert cause(given, result(printed)) == expected


def test_messages_show_what_was_found_and_what_is_given_shortened() -> None:
    fault = verify(example("pot", program("print(1)"), answer="7"), result("1" * 500 + "\n"))
    assert fault is not None and str(fault).endswith(f"{'1' * 77}...', and the answer is '7'")


def test_programs_that_fail_or_take_too_long_are_at_fault() -> None:
    pot = example("pot", program("1 / 0"), answer="1")
    assert cause(pot, result(error="ZeroDivisionError: division by zero")) == "program_failed"
    stopped = result(error="TimeoutError: the program ran longer than 2 s", timed_out=True)
    assert cause(pot, stopped) == "program_timeout"
    tir = example("tir", program("1 / 0"), output("1"), text(r"\boxed{1}"))
    fault = verify(tir, result(error="ZeroDivisionError: division by zero"))
    assert fault is not None and fault.cause == "program_failed"
    assert "ZeroDivisionError" in str(fault) and "records '1'" in str(fault)
    unanswered = example("tir", program("print(1)"), output("1"), program("1 / 0"))
    failing = result(error="ZeroDivisionError: division by zero")
    assert cause(unanswered, result("1\n"), failing) == "program_failed"


def test_the_scripts_of_an_answer_run_as_the_tool_loop_runs_them() -> None:
    given = example(
        "tir", program("x = 3\nprint(x)"), output("3"), program("print(x + 1)"), output("4")
    )
    runner = Runner(lambda code: result("3\n" if code.endswith("print(x)") else "4\n"))
    assert ProgramVerifier(runner).verify([given]) == [None]
    assert runner.ran == ["x = 3\nprint(x)", "x = 3\nprint(x + 1)"]


def test_an_output_other_than_the_recorded_one_is_at_fault() -> None:
    given = example(
        "tir", program("print(1)"), output("1"), program("print(2)"), output("3"), text("?")
    )
    fault = verify(given, result("1\n"), result("2\n"))
    assert fault is not None and fault.cause == "output_mismatch"
    assert str(fault) == "program 2 prints '2', and the answer records '3'"


@pytest.mark.parametrize(
    ("recorded", "error", "expected"),
    [
        ("Runtime errors: NameError: name 'x' is not defined", "NameError: name 'y'", None),
        ("Runtime errors: invalid syntax (<string>, line 2)", "SyntaxError: invalid syntax", None),
        (
            "---\nNameError   Traceback (most recent call last)\n...\nNameError: x",
            "NameError",
            None,
        ),
        ("Runtime errors: NameError: x", "TypeError: y", "output_mismatch"),
        ("Error: file not found", "ZeroDivisionError: division by zero", "output_mismatch"),
        ("Error: division by zero", "ZeroDivisionError: division by zero", None),
        ("Error: ", "ZeroDivisionError: division by zero", "output_mismatch"),
        ("Error: no", "killed by signal SIGSEGV", "output_mismatch"),
        ("Runtime errors: NameError: x", "", "output_mismatch"),
    ],
)
def test_errors_compare_by_their_type(recorded: str, error: str, expected: str | None) -> None:
    given = example("tir", program("f()"), output(recorded))
    assert cause(given, result(error=error)) == expected


def test_a_recorded_time_out_is_met_by_a_time_out() -> None:
    given = example("tir", program("wait()"), output("Runtime errors: Timeout"))
    stopped = result(error="TimeoutError: the program ran longer than 2 s", timed_out=True)
    assert cause(given, stopped) is None


@pytest.mark.parametrize(
    ("closing", "answer", "expected"),
    [
        (r"So \boxed{7}.", "7", None),
        (r"Smaller \boxed{7}, larger \boxed{9}.", "7", None),
        (r"\boxed{x = 7, \quad y = 9}", "7", None),
        (r"\boxed{\text{Number of pigs: 7}}", "7", None),
        (r"\boxed{(c) 7}", "7", None),
        (r"\boxed{2, 3}", "[2, 3]", None),
        (r"\boxed{583.33}", "583.3333", None),
        (r"\boxed{\frac{2}{3}}", "0.6667", None),
        (r"\boxed{\$7,000 \text{ and } \$9,000}", "7000", None),
        ("The answer is 7.", "7", None),
        (r"\boxed{8}", "7", "answer_mismatch"),
        (r"\boxed{7.3}", "7", "answer_mismatch"),
        (r"\boxed{583.3}", "583.3333", "answer_mismatch"),
        (r"\boxed{x = 8, y = 9}", "7", "answer_mismatch"),
        (r"\boxed{8}", "", None),
        ("Nothing is said.", "9", "answer_mismatch"),
    ],
)
def test_the_final_answer_is_the_given_one(closing: str, answer: str, expected: str | None) -> None:
    given = example("tir", program("print(7)"), output("7"), text(closing), answer=answer)
    assert cause(given, result("7\n")) == expected


@pytest.mark.parametrize(
    ("closing", "expected"), [("It is 7 apples.", None), (r"It is $\sqrt{7}$", "answer_mismatch")]
)
def test_prose_without_a_box_or_an_output_answers_with_its_last_line(
    closing: str, expected: str | None
) -> None:
    given = example("tir", program("pass"), text(closing), answer="7")
    assert cause(given, result("")) == expected


def test_an_answer_boxed_before_the_last_program_counts() -> None:
    blocks = (text(r"It is \boxed{7}."), program("print(7)"), output("7"), text("Verified."))
    assert cause(example("tir", *blocks, answer="7"), result("7\n")) is None


def test_programs_that_are_alike_run_once() -> None:
    runner = Runner(lambda _: result("4\n"))
    given = example("pot", program("print(4)"), answer="4")
    assert ProgramVerifier(runner).verify([given] * 5) == [None] * 5
    assert len(runner.ran) == 1


def test_programs_and_outputs_of_any_size_and_kind_are_judged() -> None:
    codes = ["+".join(["a"] * 4000), "(" * 500, "\0", "\ud800", "def f(:", ""]
    printed = [
        "x" * 65536,
        "The answer is" + " " * 65000,
        "9" * 65536,
        "1e999999999",
        "$",
        "{" * 999,
    ]
    runner = Runner(lambda program: result(printed[codes.index(program)]))
    examples = [example("pot", program(code), answer="7") for code in codes]
    faults = ProgramVerifier(runner).verify(examples)
    assert [fault and fault.cause for fault in faults] == ["answer_mismatch"] * len(codes)
    blocks = ((program(code), output(text)) for code, text in zip(codes, printed, strict=True))
    scripts = [example("tir", *pair, text(r"\boxed{7}"), answer="7") for pair in blocks]
    assert ProgramVerifier(runner).verify(scripts) == [None] * len(codes)


def test_what_the_cache_knows_is_not_run(tmp_path: Path) -> None:
    right = example("pot", program("print(4)"), answer="4")
    wrong = example("pot", program("print(4)"), answer="5")
    with ProgramCache(tmp_path / "cache") as cache:
        ProgramVerifier(Runner(lambda _: result("4\n")), cache).verify([right])
        verifier = ProgramVerifier(NoRunner(), cache)
        first, second = verifier.verify([right, wrong])
    assert first is None and second is not None and second.cause == "answer_mismatch"
    assert (verifier.counts.programs_run, verifier.counts.programs_from_cache) == (0, 1)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with verification_sandbox() as opened:
        yield opened


def run_causes(sandbox: Sandbox, *examples: Example) -> list[str | None]:
    faults = ProgramVerifier(sandbox).verify(examples)
    return [None if fault is None else fault.cause for fault in faults]


@needs_bwrap
def test_cells_share_names_and_show_their_last_expression(sandbox: Sandbox) -> None:
    good = example(
        "tir",
        program("x = [1, 2]\nx"),
        output("[1, 2]"),
        text("And"),
        program("print('sum')\nsum(x)"),
        output("sum\n3"),
        program("y = sum(x);"),
        text(r"\boxed{3}"),
        answer="3",
        notebook=True,
    )
    wrong = example("tir", program("1 + 1"), output("3"), notebook=True)
    assert run_causes(sandbox, good, wrong) == [None, "output_mismatch"]


@needs_bwrap
def test_a_cell_that_fails_does_not_stop_the_next(sandbox: Sandbox) -> None:
    traceback = "NameError    Traceback (most recent call last)\n\x1b[31mNameError\x1b[0m: name 'z'"
    good = example(
        "tir", program("x = 1\nz"), output(traceback), program("x + 1"), output("2"), notebook=True
    )
    ended = example(
        "tir", program("import os; os._exit(1)"), output("1"), program("2"), output("2"),
        notebook=True,
    )  # fmt: skip
    assert run_causes(sandbox, good, ended) == [None, "program_failed"]


@needs_bwrap
def test_answers_left_in_a_variable_or_returned_are_printed(sandbox: Sandbox) -> None:
    codes = [
        "ans = 3 + 4",
        "def solver():\n    print('working')\n    return 7\nans = solver()",
        "def solution():\n    apples = 7\n    return apples",
        "answer = 7\nprint(answer)",
        "def show():\n    print(7)\nshow()",
    ]
    examples = [example("pot", program(code), answer="7") for code in codes]
    assert run_causes(sandbox, *examples) == [None] * len(codes)
    wrong = [example("pot", program(code), answer="8") for code in codes]
    assert run_causes(sandbox, *wrong) == ["answer_mismatch"] * len(codes)


@needs_bwrap
def test_real_programs_run_as_their_authors_say(sandbox: Sandbox, shared_folder: Path) -> None:
    pytest.importorskip("sympy")
    tora, mathcoder = make_reader("tora"), make_reader("mathcoder")
    examples = [tora.example(row) for row in tora.rows(
        shared_folder / "data" / "tora_examples" / "examples.jsonl.gz"
    )]  # fmt: skip
    rows = mathcoder.rows(shared_folder / "data" / "tir_mathcoder" / "tir.jsonl.gz")
    examples += [mathcoder.example(row) for row, _ in zip(rows, range(60), strict=False)]
    faults = ProgramVerifier(sandbox).verify(examples)
    # One of ToRA's programs cannot have printed what is recorded: it raises a TypeError.
    assert [fault.cause for fault in faults if fault is not None] == ["program_failed"]
