"""MATH: competition problems with worked solutions."""

from typing import Any

from dsm_engine.data.example import Block, Example, ExampleOmitted
from dsm_engine.data.sources.answers import last_boxed
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field


class MathReader(Reader):
    r"""`{"problem", "level", "type", "solution"}`; the final answer is the last `\boxed{}`.

    A row whose solution boxes nothing is omitted.
    """

    name = "math"
    licence = "MIT"
    decontaminate = "report"

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        solution = text_field(record, "solution", "missing_answer")
        answer = last_boxed(solution)
        if not answer:
            raise ExampleOmitted("no_final_answer", "the solution boxes no answer")
        return Example(
            id=self.stable_id(row),
            question=text_field(record, "problem", "missing_question"),
            blocks=(Block(kind="text", text=solution),),
            answer=answer,
            language="en",
            format="cot",
            source=self.source,
            topic=optional_text(record, "type"),
            licence=self.licence,
        )
