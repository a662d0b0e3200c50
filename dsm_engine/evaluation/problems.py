"""Benchmark problems: JSONL files, one problem a line, gzip-compressed or not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, model_validator

from dsm_engine.data.example import ExampleFault, Language, detect_language
from dsm_engine.data.sources.rows import optional_text, parse_object, read_lines, text_field
from dsm_engine.errors import DsmError
from dsm_engine.recipes import Section


class BenchmarkRecipe(Section):
    """One file of problems and how to read it. A bare path stands for `{path: PATH}`."""

    path: Path
    name: str = ""
    """What the results call it; the file's name without its ending where it is empty."""
    limit: PositiveInt | None = None
    """Only so many problems from the beginning; without it the recipe's own limit."""
    language: Language | None = None
    """Of rows that have no `language`; without it each question's own, by its characters."""
    question_key: str = "question"
    answer_key: str = "answer"
    """Of an answer with a worked solution before `####`, as in GSM8K, what follows it is taken."""
    id_key: str = "id"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            value = {"path": value}
        if isinstance(value, dict) and "path" in value and not value.get("name"):
            value = {**value, "name": Path(value["path"]).name.split(".")[0]}
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem with its gold answer."""

    id: str
    question: str
    answer: str
    language: Language
    topic: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """The row's other keys, such as `level`."""


def read_problems(benchmark: BenchmarkRecipe, *, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark. Raises DsmError (file:line) at the first row that is none."""
    limit = benchmark.limit or limit
    problems: dict[str, Problem] = {}
    for row in read_lines(benchmark.path):
        where = f"{row.path}:{row.line}"
        try:
            problem = _problem(parse_object(row), benchmark, row.line)
        except ExampleFault as fault:
            raise DsmError(f"{where}: {fault}") from fault
        if problem.id in problems:
            raise DsmError(f"{where}: the id {problem.id!r} stands twice")
        problems[problem.id] = problem
        if len(problems) == limit:
            break
    if not problems:
        raise DsmError(f"{benchmark.path}: holds no problem")
    return list(problems.values())


def _problem(record: dict[str, Any], benchmark: BenchmarkRecipe, line: int) -> Problem:
    question = text_field(record, benchmark.question_key, "missing_question")
    answer = optional_text(record, benchmark.answer_key).rpartition("####")[2].strip()
    if not answer:
        raise ExampleFault("missing_answer", f"{benchmark.answer_key!r} is missing or blank")
    language = record.get("language") or benchmark.language or detect_language(question)
    if language not in ("en", "zh"):
        raise ExampleFault("bad_value", f"the language {language!r} is neither 'en' nor 'zh'")
    keys = (benchmark.question_key, benchmark.answer_key, benchmark.id_key, "language", "topic")
    return Problem(
        id=optional_text(record, benchmark.id_key) or f"{benchmark.name}:{line}",
        question=question,
        answer=answer,
        language=language,
        topic=optional_text(record, "topic"),
        extra={key: value for key, value in record.items() if key not in keys},
    )
