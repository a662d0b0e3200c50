"""ToRA: prose, programs and what they printed, in one string."""

from typing import Any

from dsm_engine.data.example import Block, Example, ExampleFault, parse_solution, solution_format
from dsm_engine.data.sources.answers import last_boxed
from dsm_engine.data.sources.conversations import find_messages, split_messages
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field

_QUESTION_KEYS = ("question", "problem")
_SOLUTION_KEYS = ("output", "solution", "code")


class ToraReader(Reader):
    r"""`{"dataset", "level", "id", "gt", "gt_cot", "messages": [user, assistant]}`.

    The assistant's text has ```` ```python ```` and ```` ```output ```` fences. Instead of
    `messages`, a `question` or `problem` and that text under `output`, `solution` or `code` (there
    also as a list of one). The final answer is `gt`, or the last `\boxed{}` where that is missing.
    """

    name = "tora"
    licence = "MIT"
    decontaminate = "report"

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        messages = find_messages(record)
        if messages is None:
            question, blocks = _question_and_text(record)
        else:
            question, blocks = split_messages(messages)
        if not blocks:
            raise ExampleFault("missing_answer", "there is no answer")
        closing = blocks[-1].text if blocks[-1].kind == "text" else ""
        return Example(
            id=f"{self.source}/{optional_text(record, 'id') or row.digest}",
            question=question,
            blocks=blocks,
            answer=optional_text(record, "gt") or last_boxed(closing),
            language="en",
            format=solution_format(blocks),
            source=self.source,
            licence=self.licence,
        )


def _question_and_text(record: dict[str, Any]) -> tuple[str, tuple[Block, ...]]:
    question_key = _present(record, _QUESTION_KEYS, "missing_question")
    solution_key = _present(record, _SOLUTION_KEYS, "missing_answer")
    solution = record[solution_key]
    if isinstance(solution, list) and len(solution) == 1:
        record = {**record, solution_key: solution[0]}
    text = text_field(record, solution_key, "missing_answer")
    return text_field(record, question_key, "missing_question"), parse_solution(text)


def _present(record: dict[str, Any], keys: tuple[str, ...], cause: str) -> str:
    for key in keys:
        if record.get(key) is not None:
            return key
    raise ExampleFault(cause, f"there is neither 'messages' nor {' nor '.join(map(repr, keys))}")
