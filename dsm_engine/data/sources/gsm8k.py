"""GSM8K: grade-school word problems with worked solutions."""

import re
from typing import Any

from dsm_engine.data.example import Block, Example, ExampleFault
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, text_field

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


class Gsm8kReader(Reader):
    r"""`{"question", "answer"}`, as published: `<<48/2=24>>` marks, the final answer after `####`.

    The marks go. As the CoT suffix asks for a boxed answer, the line after `####` becomes
    `The answer is \boxed{72}.`, without thousands separators.
    """

    name = "gsm8k"
    licence = "MIT"
    decontaminate = "report"

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        solution = text_field(record, "answer", "missing_answer")
        reasoning, mark, final = solution.rpartition("####")
        answer = final.strip().replace(",", "")
        if not mark or not answer:
            raise ExampleFault("missing_answer", "no final answer after ####")
        reasoning = _CALCULATOR_MARK.sub("", reasoning).strip()
        if not reasoning:
            raise ExampleFault("missing_answer", "no reasoning before ####")
        text = f"{reasoning}\nThe answer is \\boxed{{{answer}}}."
        return Example(
            id=self.stable_id(row),
            question=text_field(record, "question", "missing_question"),
            blocks=(Block(kind="text", text=text),),
            answer=answer,
            language="en",
            format="cot",
            source=self.source,
            licence=self.licence,
        )
