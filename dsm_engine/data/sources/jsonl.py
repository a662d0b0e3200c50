"""Anybody's records: a question, a solution, or messages, and what else there is."""

from typing import Any, get_args

from dsm_engine.data.example import (
    Block,
    Example,
    ExampleFault,
    Format,
    Language,
    detect_language,
    parse_solution,
    solution_format,
)
from dsm_engine.data.sources.conversations import SystemPolicy, find_messages, split_messages
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, choice, optional_text, text_field
from dsm_engine.recipes import Section

_SOLUTION_KEYS = ("solution", "answer")


class JsonlOptions(Section):
    """Where the parts of an example stand in a record."""

    question_key: str = "question"
    solution_key: str | None = None
    """The worked answer; without it `solution`, else `answer`."""
    program_key: str | None = None
    """A program without fences that is the whole answer, in place of a worked one."""
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
    system: SystemPolicy = "error"
    """What becomes of a system message: `omit` leaves it out, `prepend` puts it before the
    question."""


class JsonlReader(Reader):
    """`{"question", "solution" or "answer"}`, under these keys or those the options name.

    A record without a question may have messages instead: `messages` of `{"role", "content"}`
    (OpenAI) or `conversations` of `{"from", "value"}` (ShareGPT), one question and its answer. The
    file is JSONL, a JSON list or Parquet, compressed or not, as for every reader. A record's own
    `language` and `format` hold; numbers are text.
    """

    name = "jsonl"
    Options = JsonlOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        options = self.options
        assert isinstance(options, JsonlOptions)
        has_question = record.get(options.question_key) is not None
        messages = None if has_question else find_messages(record)
        if messages is not None:
            question, blocks = split_messages(messages, system=options.system)
            answer_key = options.answer_key or "answer"
        else:
            question = text_field(record, options.question_key, "missing_question")
            solution_key = options.program_key or options.solution_key or _solution_key(record)
            blocks = _solution(record, solution_key, is_program=options.program_key is not None)
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


def _solution(record: dict[str, Any], key: str, *, is_program: bool) -> tuple[Block, ...]:
    solution = optional_text(record, key)
    if not solution:
        raise ExampleFault("missing_answer", f"{key!r} is missing or blank")
    return (Block(kind="program", text=solution),) if is_program else parse_solution(solution)


def _own(record: dict[str, Any], key: str, known: tuple[str, ...]) -> Any:
    return None if record.get(key) is None else choice(record, key, known)


def _solution_key(record: dict[str, Any]) -> str:
    for key in _SOLUTION_KEYS:
        if record.get(key) is not None:
            return key
    raise ExampleFault("missing_answer", "neither 'solution' nor 'answer' is there")
