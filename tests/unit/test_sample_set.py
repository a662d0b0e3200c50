"""The sample set: deterministic, verified, and its held-out problems new in every respect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsm_engine.data import sample_set
from dsm_engine.data.sample_problems import OPERATIONS, side_of_numbers
from dsm_engine.data.sample_set import tokenizer_symbols, write_sample_set
from dsm_engine.errors import DsmError


@dataclass
class Outcome:
    stdout: str
    error: str = ""
    timed_out: bool = False


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def small_set(folder: Path, **arguments: Any) -> sample_set.SampleSetReport:
    defaults: dict[str, Any] = {
        "num_problems": 80,
        "num_held_out": 16,
        "num_validation": 8,
        "seed": 7,
    }
    return write_sample_set(folder, **{**defaults, **arguments})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> sample_set.SampleSetReport:
    return write_sample_set(tmp_path_factory.mktemp("sample"), seed=1)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = small_set(tmp_path / "a"), small_set(tmp_path / "b")
    other = small_set(tmp_path / "c", seed=8)
    for name in ("train_path", "validation_path", "held_out_path"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
        assert getattr(first, name).read_bytes() != getattr(other, name).read_bytes()


def test_each_problem_stands_in_all_three_formats(full: sample_set.SampleSetReport) -> None:
    rows = read(full.train_path)
    assert len(rows) == full.num_examples == 3 * full.num_problems == 6000
    for number in range(0, len(rows), 3):
        triple = rows[number : number + 3]
        assert [row["format"] for row in triple] == ["cot", "pot", "tir"]
        assert len({(row["question"], row["answer"], row["language"]) for row in triple}) == 1
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows[3]["id"] == "dsm_sample/000001/cot"
    kinds = [[block["kind"] for block in row["blocks"]] for row in rows[:3]]
    assert kinds == [["text"], ["program"], ["program", "output", "text"]]


def test_languages_and_operations_are_even(full: sample_set.SampleSetReport) -> None:
    rows = read(full.held_out_path)
    for operation in OPERATIONS:
        for language in ("en", "zh"):
            kind = [r for r in rows if (r["topic"], r["language"]) == (operation, language)]
            assert len(kind) == 25


def test_held_out_numbers_and_questions_never_occur_in_training(
    full: sample_set.SampleSetReport,
) -> None:
    train, validation = read(full.train_path), read(full.validation_path)
    held_out = read(full.held_out_path)
    pairs = [
        {tuple(sorted(row["numbers"][:2])) for row in rows}
        for rows in (train, validation, held_out)
    ]
    assert not (pairs[0] & pairs[1] or pairs[0] & pairs[2] or pairs[1] & pairs[2])
    assert not {row["question"] for row in train} & {row["question"] for row in held_out}
    assert all(side_of_numbers(tuple(row["numbers"])) == "held_out" for row in held_out)


def test_no_digit_is_hidden_from_training(full: sample_set.SampleSetReport) -> None:
    firsts = {str(row["numbers"][0])[-1] for row in read(full.train_path)}
    seconds = {str(row["numbers"][1])[-1] for row in read(full.train_path)}
    assert firsts == seconds == set("0123456789")


def test_every_answer_is_the_value_of_the_operation(full: sample_set.SampleSetReport) -> None:
    for row in read(full.held_out_path) + read(full.train_path):
        names = dict(zip("abc", row["numbers"], strict=False))
        assert row["answer"] == str(eval(row["operation"], {}, names))
        assert int(row["answer"]) >= 1


def test_programs_are_handed_over_once_and_in_one_batch(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    def run(programs: list[str]) -> list[Outcome]:
        batches.append(programs)
        return [Outcome(stdout=f"{sample_set._interpret(p)}\n") for p in programs]

    report = small_set(tmp_path, verify_programs=run)
    assert report.programs_verified_by == "sandbox"
    assert len(batches) == 1 and len(set(batches[0])) == len(batches[0]) == report.num_programs
    written = {
        block["text"]
        for row in read(report.train_path) + read(report.validation_path)
        for block in row["blocks"]
        if block["kind"] == "program"
    }
    assert written <= set(batches[0])


@pytest.mark.parametrize(
    "outcome", [Outcome("-1\n"), Outcome("", error="ValueError: x"), Outcome("", timed_out=True)]
)
def test_a_program_that_does_not_print_its_answer_stops_the_writing(
    tmp_path: Path, outcome: Outcome
) -> None:
    with pytest.raises(AssertionError):
        small_set(tmp_path, verify_programs=lambda programs: [outcome] * len(programs))
    assert not list(tmp_path.iterdir())


def test_a_wrong_step_is_noticed(full: sample_set.SampleSetReport) -> None:
    row = next(r for r in read(full.train_path) if r["format"] == "cot")
    assert sample_set._verify_texts(row) in (1, 2)
    block = row["blocks"][0]
    broken = row | {"blocks": [block | {"text": block["text"].replace(" = ", " = 1", 1)}]}
    with pytest.raises(AssertionError):
        sample_set._verify_texts(broken)
    with pytest.raises(AssertionError, match="numbers differ"):
        sample_set._verify_texts(row | {"numbers": [1, 2]})


def test_impossible_counts_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_set, "_MAX_DRAWS", 1)
    with pytest.raises(DsmError, match="must be 1 or more"):
        small_set(tmp_path, num_problems=0)
    with pytest.raises(DsmError, match="ask for fewer"):
        small_set(tmp_path, num_held_out=3000)
    assert not list(tmp_path.iterdir())


def test_symbols_are_distinct_and_occur_in_rendered_examples() -> None:
    symbols = tokenizer_symbols()
    assert len(set(symbols)) == len(symbols)
    assert {"\n", "```", "\\boxed{", "User:"} <= set(symbols)
