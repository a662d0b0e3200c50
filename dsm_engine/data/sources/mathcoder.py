"""MathCoder: prose, notebook cells and what they displayed, as typed blocks."""

import re
from typing import Any

from dsm_engine.data.example import (
    Block,
    BlockKind,
    Example,
    ExampleFault,
    ExampleOmitted,
    solution_format,
)
from dsm_engine.data.sources.answers import last_boxed
from dsm_engine.data.sources.conversations import message_text
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, choice, optional_text, text_field
from dsm_engine.recipes import Section

_KINDS: dict[str, BlockKind] = {"text": "text", "code": "program", "execution": "output"}
_FENCE_LINE = re.compile(r"^```", re.MULTILINE)


class MathcoderOptions(Section):
    """Which rows are read."""

    sources: tuple[str, ...] = ()
    """Values of a row's `source`, such as `mathcoder/simuleq`; all where it is empty. Rows of
    others are omitted."""


class MathcoderReader(Reader):
    r"""`{"question", "blocks": [{"role": "text" | "code" | "execution", "content"}], "answer"}`.

    Also as published: `messages` of a user and an assistant, whose `content` is a list of
    `{"type", "content"}`. Programs are notebook cells: names live on from cell to cell, and the
    value of a last line that is an expression is displayed without a `print`. They are kept so. The
    final answer is `answer`, or the last `\boxed{}` where that is missing.
    """

    name = "mathcoder"
    licence = "Apache-2.0"
    Options = MathcoderOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        options = self.options
        assert isinstance(options, MathcoderOptions)
        if options.sources and record.get("source") not in options.sources:
            raise ExampleOmitted("source_not_chosen", f"is of {record.get('source')!r:.80}")
        question, parts = _question_and_parts(record)
        blocks = _blocks(parts)
        closing = blocks[-1].text if blocks[-1].kind == "text" else ""
        return Example(
            id=self.stable_id(row),
            question=question,
            blocks=blocks,
            answer=_answer(record) or last_boxed(closing),
            language="en",
            format=solution_format(blocks),
            source=self.source,
            licence=self.licence,
            notebook=True,
        )


def _question_and_parts(record: dict[str, Any]) -> tuple[str, Any]:
    messages = record.get("messages")
    if messages is None:
        return text_field(record, "question", "missing_question"), record.get("blocks")
    try:
        by_role = {message["role"]: message["content"] for message in messages}
        if len(by_role) != len(messages):
            raise ExampleFault("several_turns", "there is more than one question and answer")
        system, user, assistant = by_role.get("system"), by_role["user"], by_role["assistant"]
    except (KeyError, TypeError) as error:
        raise ExampleFault("bad_value", "'messages' is not as published") from error
    if system and message_text(system).strip():
        raise ExampleFault("system_message", "there is a system message")
    return message_text(user), assistant


def _blocks(parts: Any) -> tuple[Block, ...]:
    if not isinstance(parts, list):
        raise ExampleFault("bad_value", "the answer is not a list of blocks")
    blocks: list[Block] = []
    for part in parts:
        block = _block(part)
        if block.kind == "text" and blocks and blocks[-1].kind == "text":
            block = Block(kind="text", text=f"{blocks.pop().text}\n{block.text}")
        blocks.append(block)
    if not blocks:
        raise ExampleFault("missing_answer", "the answer has no blocks")
    return tuple(blocks)


def _block(part: Any) -> Block:
    if not isinstance(part, dict) or not isinstance(part.get("content"), str):
        raise ExampleFault("bad_value", "a block is not an object with a role and a content")
    kind = _KINDS[choice(part, "role" if "role" in part else "type", tuple(_KINDS))]
    if kind == "text" and _FENCE_LINE.search(part["content"]):
        raise ExampleFault("fence_in_text", "a line of the prose begins with ```")
    return Block(kind=kind, text=part["content"])


def _answer(record: dict[str, Any]) -> str:
    value = record.get("answer")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return optional_text(record, "answer")
