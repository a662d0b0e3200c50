"""Anybody's JSONL: a question, a solution, and what else there is."""

from typing import Any, get_args

from dsm_engine.data.example import (
    Example,
    ExampleFault,
    Format,
    Language,
    detect_language,
    parse_solution,
    solution_format,
)
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, choice, optional_text, text_field
from dsm_engine.recipes import Section

_SOLUTION_KEYS = ("solution", "answer")


class JsonlOptions(Section):
    """Where the parts of an example stand in a record."""

    question_key: str = "question"
    solution_key: str | None = None
    """The worked answer; without it `solution`, else `answer`."""
    answer_key: str | None = None
    """The final answer alone; without it `answer`, where that is not the solution."""
    id_key: str = "id"
    topic_key: str = "topic"
    language: Language | None = None
    """Of records that have no `language`; without it each question's own, by its characters."""
    format: Format | None = None
    """Of records that have no `format`; without it by the fences, ```` ```python ```` and
    ```` ```output ````."""
    licence: str = ""


class JsonlReader(Reader):
    """`{"question", "solution" or "answer"}`, under these keys or those the options name.

    A record's own `language` and `format` hold; numbers are text.
    """

    name = "jsonl"
    Options = JsonlOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        options = self.options
        assert isinstance(options, JsonlOptions)
        question = text_field(record, options.question_key, "missing_question")
        solution_key = options.solution_key or _solution_key(record)
        solution = optional_text(record, solution_key)
        if not solution:
            raise ExampleFault("missing_answer", f"{solution_key!r} is missing or blank")
        blocks = parse_solution(solution)
        answer_key = options.answer_key or ("answer" if solution_key != "answer" else None)
        return Example(
            id=optional_text(record, options.id_key) or self.stable_id(row),
            question=question,
            blocks=blocks,
            answer=optional_text(record, answer_key) if answer_key else "",
            language=_own(record, "language", get_args(Language))
            or options.language
            or detect_language(question),
            format=_own(record, "format", get_args(Format))
            or options.format
            or solution_format(blocks),
            source=self.source,
            topic=optional_text(record, options.topic_key),
            licence=options.licence,
        )


def _own(record: dict[str, Any], key: str, known: tuple[str, ...]) -> Any:
    return None if record.get(key) is None else choice(record, key, known)


def _solution_key(record: dict[str, Any]) -> str:
    for key in _SOLUTION_KEYS:
        if record.get(key) is not None:
            return key
    raise ExampleFault("missing_answer", "neither 'solution' nor 'answer' is there")
