"""MathInstruct: chains and programs of thought, collected from 13 sets."""

import re
from typing import Any, Literal

from dsm_engine.data.example import (
    Block,
    Example,
    ExampleFault,
    ExampleOmitted,
    Format,
    parse_solution,
)
from dsm_engine.data.sources.answers import box_stated_answer, last_boxed
from dsm_engine.data.sources.programs import check_python
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, text_field
from dsm_engine.nearest import nearest
from dsm_engine.recipes import Section

Part = Literal[
    "CoT/MATH_train",
    "CoT/TheoremQA",
    "CoT/college_math",
    "CoT/gsm_train",
    "CoT/gsm_rft",
    "CoT/number_comparison",
    "CoT/aqua_rat",
    "PoT/MATH_train",
    "PoT/TheoremQA",
    "PoT/aqua_rat_filtered",
    "PoT/gsm_gpt4",
    "PoT/numglue",
    "PoT/mathqa",
]
_PART = re.compile(r"(?:data/)?(?P<part>(?P<format>CoT|PoT)/\w+)(?:\.json)?")
# What asks for a program at the end of a question: the template has words of its own for that.
_ASKS_FOR_PROGRAM = re.compile(
    r"\s*(?:Let's write a (?:Python )?program(?: to solve it)?"
    r"|Let's program in Python in the response"
    r"|Please write a program to solve it)[.!]?\s*\Z"
)


class MathInstructOptions(Section):
    """Which of its sets are read."""

    parts: tuple[Part, ...] = ()
    """Such as `CoT/gsm_rft`; all of them where it is empty. Rows of others are omitted."""


class MathInstructReader(Reader):
    r"""`{"source": "data/CoT/gsm_train.json", "instruction", "output"}`.

    The prefix of `source` is the format. A chain without a `\boxed{}` has its closing
    `The answer is 5` boxed, as the CoT suffix asks for it, and is omitted where it states no
    answer. A program stands without fences; what asks for one at the question's end goes.
    """

    name = "math_instruct"
    licence = "MIT"
    Options = MathInstructOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        part, format = self._part(record)
        question = text_field(record, "instruction", "missing_question")
        output = text_field(record, "output", "missing_answer")
        if format == "pot":
            question = _ASKS_FOR_PROGRAM.sub("", question)
            blocks, answer = _program(output), ""
        else:
            blocks, answer = _chain(output)
        return Example(
            id=f"{self.source}/{part}/{row.digest}",
            question=question,
            blocks=blocks,
            answer=answer,
            language="en",
            format=format,
            source=self.source,
            licence=self.licence,
        )

    def _part(self, record: dict[str, Any]) -> tuple[str, Format]:
        options = self.options
        assert isinstance(options, MathInstructOptions)
        source = text_field(record, "source", "bad_value")
        match = _PART.fullmatch(source)
        if match is None:
            hint = nearest(source[:80], ("data/CoT/gsm_train.json", "data/PoT/mathqa.json"))
            raise ExampleFault("bad_value", f"'source' is {source!r:.80} {hint}")
        if options.parts and match["part"] not in options.parts:
            raise ExampleOmitted("part_not_chosen", f"{match['part']} is none of the parts")
        return match["part"], "pot" if match["format"] == "PoT" else "cot"


def _program(output: str) -> tuple[Block, ...]:
    blocks = parse_solution(output) if "```" in output else ()
    if not any(block.kind == "program" for block in blocks):
        blocks = (Block(kind="program", text=output),)
    for block in blocks:
        if block.kind == "program":
            check_python(block.text)
    return blocks


def _chain(output: str) -> tuple[tuple[Block, ...], str]:
    answer = last_boxed(output)
    if not answer:
        output, answer = box_stated_answer(output)
    if not answer:
        raise ExampleOmitted("no_final_answer", "the solution states no answer at its end")
    return (Block(kind="text", text=output),), answer
