"""The engine's own JSONL: one example a line, nothing left to guess."""

from typing import Any, get_args

from dsm_engine.data.example import Block, BlockKind, Example, ExampleFault, Format, Language
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, choice, optional_text, text_field


class ExamplesReader(Reader):
    """`{"id", "question", "blocks": [{"kind", "text"}], "answer", "language", "format", ...}`.

    `source`, `topic` and `licence` may be left out, as may `notebook`, true where programs are
    cells; keys it does not know are ignored.
    """

    name = "examples"

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        return Example(
            id=optional_text(record, "id") or self.stable_id(row),
            question=text_field(record, "question", "missing_question"),
            blocks=_blocks(record),
            answer=optional_text(record, "answer"),
            language=choice(record, "language", get_args(Language)),
            format=choice(record, "format", get_args(Format)),
            source=optional_text(record, "source") or self.source,
            topic=optional_text(record, "topic"),
            licence=optional_text(record, "licence"),
            notebook=_flag(record, "notebook"),
        )


def _flag(record: dict[str, Any], key: str) -> bool:
    value = record.get(key, False)
    if not isinstance(value, bool):
        raise ExampleFault("bad_value", f"{key!r} is neither true nor false")
    return value


def _blocks(record: dict[str, Any]) -> tuple[Block, ...]:
    values = record.get("blocks")
    if values is None or values == []:
        raise ExampleFault("missing_answer", "'blocks' is missing or empty")
    if not isinstance(values, list):
        raise ExampleFault("bad_value", "'blocks' is not a list")
    return tuple(_block(value) for value in values)


def _block(value: Any) -> Block:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ExampleFault("bad_value", "a block is not an object with a kind and a text")
    return Block(kind=choice(value, "kind", get_args(BlockKind)), text=value["text"])
