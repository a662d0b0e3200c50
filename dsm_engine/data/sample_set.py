"""The project's own sample set: seeded bilingual word problems, every answer verified.

`write_sample_set` writes three files: `train.jsonl` and `validation.jsonl`, examples in the
engine's JSONL (each problem in all three formats, three lines a problem), and `held_out.jsonl`,
problems for evaluation. Number pairs, sentence pairs and name-item pairs of the training problems
occur in neither of the other two. The same seed gives the same bytes.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import orjson

from dsm_engine.data.sample_problems import LANGUAGES, OPERATIONS, Problem, Side, draw_problem
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file

SOURCE = "dsm_sample"
LICENCE = "Apache-2.0"
_MAX_DRAWS = 200  # draws without a new question before giving up


class ProgramOutcome(Protocol):
    """What running one program gave: the sandbox's ProgramResult fits."""

    @property
    def stdout(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def timed_out(self) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSetReport:
    """What `write_sample_set` wrote, and how much of it was verified by what."""

    train_path: Path
    validation_path: Path
    held_out_path: Path
    num_problems: int
    """Training problems; each is three examples."""
    num_examples: int
    num_validation_examples: int
    num_held_out: int
    num_equations: int
    """Equations in chain-of-thought texts, recomputed with exact integers."""
    num_programs: int
    """Distinct programs whose output was compared with the answer."""
    programs_verified_by: Literal["sandbox", "interpreter"]
    """Run in the sandbox, or computed from their syntax tree where there is no sandbox."""


def write_sample_set(
    folder: Path,
    *,
    num_problems: int = 2000,
    num_held_out: int = 200,
    num_validation: int = 100,
    seed: int,
    verify_programs: Callable[[list[str]], Sequence[ProgramOutcome]] | None = None,
) -> SampleSetReport:
    """Generates, verifies and writes the sample set into `folder`.

    `verify_programs` runs all programs in one batch, in order; without it each program's
    arithmetic is computed from its syntax tree. Raises DsmError where the counts are not
    positive or ask for more distinct problems than there are, and AssertionError where an answer
    does not verify, in which case nothing is written.
    """
    counts = {"train": num_problems, "validation": num_validation, "held_out": num_held_out}
    for name, count in counts.items():
        if count < 1:
            raise DsmError(
                f"sample set: the number of {name} problems is {count}, must be 1 or more"
            )
    seen: set[str] = set()
    train = _draw_problems("train", num_problems, seed, seen)
    validation = _draw_problems("validation", num_validation, seed, seen)
    held_out = _draw_problems("held_out", num_held_out, seed, seen)

    train_rows = [row for idx, p in enumerate(train) for row in _example_rows(p, f"{idx:06d}")]
    validation_rows = [
        row for idx, p in enumerate(validation) for row in _example_rows(p, f"validation-{idx:06d}")
    ]
    held_out_rows = [_problem_row(p, f"{SOURCE}/held_out-{i:06d}") for i, p in enumerate(held_out)]

    num_equations = sum(_verify_texts(row) for row in train_rows + validation_rows)
    expected = {_program(p): str(_answer(p)) for p in train + validation + held_out}
    for row in train_rows + validation_rows:
        for block in row["blocks"]:
            if block["kind"] == "program":
                assert expected[block["text"]] == row["answer"], f"{row['id']}: program differs"
    _verify_programs(expected, verify_programs)

    paths = [folder / name for name in ("train.jsonl", "validation.jsonl", "held_out.jsonl")]
    for path, rows in zip(paths, (train_rows, validation_rows, held_out_rows), strict=True):
        with atomic_file(path) as file:
            file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    return SampleSetReport(
        train_path=paths[0],
        validation_path=paths[1],
        held_out_path=paths[2],
        num_problems=num_problems,
        num_examples=len(train_rows),
        num_validation_examples=len(validation_rows),
        num_held_out=num_held_out,
        num_equations=num_equations,
        num_programs=len(expected),
        programs_verified_by="sandbox" if verify_programs else "interpreter",
    )


def tokenizer_symbols() -> list[str]:
    """Strings that a small tokenizer for this set should hold as single pieces.

    The template's suffixes belong there too; the caller knows the template and adds them.
    """
    return ["User:", "\n\nAssistant:", "\n", "```python", "```output", "```", "\\boxed{"]


def _draw_problems(side: Side, count: int, seed: int, seen: set[str]) -> list[Problem]:
    """`count` new problems, operations and languages evenly; `seen` grows by their questions."""
    rng = Random(f"{seed}/{side}")
    kinds = [(operation, language) for operation in OPERATIONS for language in LANGUAGES]
    problems: list[Problem] = []
    for idx in range(count):
        for _ in range(_MAX_DRAWS):
            problem = draw_problem(rng, *kinds[idx % len(kinds)], side)
            if problem.question not in seen:
                break
        else:
            raise DsmError(
                f"sample set: there are not {count} distinct {side} problems; ask for fewer"
            )
        seen.add(problem.question)
        problems.append(problem)
    rng.shuffle(problems)
    return problems


def _example_rows(problem: Problem, number: str) -> list[dict[str, Any]]:
    answer = str(_answer(problem))
    program = {"kind": "program", "text": _program(problem)}
    output = {"kind": "output", "text": answer}
    sentence = _ANSWER_SENTENCES[problem.language] % answer
    blocks = {
        "cot": [{"kind": "text", "text": "\n".join([*_steps(problem), sentence])}],
        "pot": [program],
        "tir": [program, output, {"kind": "text", "text": sentence}],
    }
    common = _problem_row(problem, "")
    extra = {"source": SOURCE, "licence": LICENCE}
    return [
        common | extra | {"id": f"{SOURCE}/{number}/{kind}", "format": kind, "blocks": blocks[kind]}
        for kind in ("cot", "pot", "tir")
    ]


_ANSWER_SENTENCES = {"en": "The answer is \\boxed{%s}.", "zh": "答案是\\boxed{%s}。"}


def _problem_row(problem: Problem, row_id: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "question": problem.question,
        "answer": str(_answer(problem)),
        "language": problem.language,
        "topic": problem.operation,
        "operation": problem.expression,
        "numbers": list(problem.numbers),
    }


def _answer(problem: Problem) -> int:
    a, b, *rest = problem.numbers
    match problem.operation:
        case "addition":
            return a + b
        case "subtraction":
            return a - b
        case "multiplication":
            return a * b
        case _:
            return a * b - rest[0]


def _steps(problem: Problem) -> list[str]:
    a, b, *rest = problem.numbers
    sign = problem.expression[2]
    if not rest:
        return [f"{a} {sign} {b} = {_answer(problem)}"]
    return [f"{a} * {b} = {a * b}", f"{a * b} - {rest[0]} = {_answer(problem)}"]


def _program(problem: Problem) -> str:
    lines = [f"{name} = {number}" for name, number in zip("abc", problem.numbers, strict=False)]
    return "\n".join([*lines, f"print({problem.expression})"])


_EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (-?\d+)")
_BOXED = re.compile(r"\\boxed\{(-?\d+)\}")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


def _verify_texts(row: dict[str, Any]) -> int:
    """Recomputes what the row's texts claim, from the texts alone; returns the equations."""
    where, answer, num_equations = row["id"], row["answer"], 0
    in_question = sorted(map(int, re.findall(r"\d+", row["question"])))
    assert in_question == sorted(row["numbers"]), f"{where}: the question's numbers differ"
    for block in row["blocks"]:
        if block["kind"] == "output":
            assert block["text"] == answer, f"{where}: the output is not the answer"
        if block["kind"] == "text":
            assert _BOXED.findall(block["text"]) == [answer], f"{where}: the boxed answer differs"
        equations = _EQUATION.findall(block["text"]) if block["kind"] == "text" else []
        for left, sign, right, result in equations:
            value = _ARITHMETIC[sign](int(left), int(right))
            assert value == int(result), f"{where}: {left} {sign} {right} is {value}"
        if equations:
            assert equations[-1][3] == answer, f"{where}: the last step is not the answer"
        num_equations += len(equations)
    assert num_equations or row["format"] != "cot", f"{where}: a chain of thought without steps"
    return num_equations


def _verify_programs(
    expected: dict[str, str], run: Callable[[list[str]], Sequence[ProgramOutcome]] | None
) -> None:
    programs = list(expected)
    if run is None:
        outputs = [str(_interpret(program)) for program in programs]
    else:
        results = run(programs)
        assert len(results) == len(programs), "one result a program"
        for program, result in zip(programs, results, strict=True):
            assert not (result.error or result.timed_out), f"{result.error}: {program!r}"
        outputs = [result.stdout.strip() for result in results]
    for program, output in zip(programs, outputs, strict=True):
        assert output == expected[program], f"{program!r} prints {output}, not {expected[program]}"


def _interpret(program: str) -> int:
    """What a program of integer assignments and one final print prints."""
    *assignments, last = ast.parse(program).body
    values: dict[str, int] = {}
    for statement in assignments:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _evaluate(value, values)
            case _:
                raise AssertionError(f"not an assignment: {ast.unparse(statement)}")
    match last:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[argument])):
            return _evaluate(argument, values)
    raise AssertionError(f"not a print: {ast.unparse(last)}")


def _evaluate(node: ast.expr, values: dict[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left, values) + _evaluate(right, values)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _evaluate(left, values) - _evaluate(right, values)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left, values) * _evaluate(right, values)
    raise AssertionError(f"not integer arithmetic: {ast.unparse(node)}")
