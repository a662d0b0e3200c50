"""GAOKAO-Bench: questions of the Chinese university entrance examination, with analyses."""

import re
from typing import Any, Self

from pydantic import model_validator

from dsm_engine.data.example import Block, Example, ExampleFault, ExampleOmitted
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field
from dsm_engine.recipes import Section

_SCORE = r"[(（]\s*\d+\s*分\s*[)）]"
_NUMBER_AND_SCORE = re.compile(rf"\A\d+\s*(?:[.．、](?!\d)\s*(?:{_SCORE})?|{_SCORE})\s*")
_MAX_ANSWER_CHARACTERS = 200


class GaokaoBenchOptions(Section):
    """Whether it is read at all."""

    train_on_benchmark: bool = False
    """GAOKAO-Bench is a benchmark too: a model trained on it is not to be evaluated on it."""

    @model_validator(mode="after")
    def _is_wanted(self) -> Self:
        if not self.train_on_benchmark:
            raise ValueError(
                "GAOKAO-Bench is a benchmark too; train_on_benchmark: true reads it all the same"
            )
        return self


class GaokaoBenchReader(Reader):
    r"""`{"keywords", "example": [{"year", "category", "question", "answer", "analysis", ...}]}`.

    The answer is the analysis, then the letter or the short answer in `\boxed{}`; the question
    loses its number and score. Omitted: rows without an analysis or an answer (`no_solution`),
    with several answers, or with a worked solution in place of the answer, as the open-ended
    questions have it (`no_final_answer`).
    """

    name = "gaokao_bench"
    licence = "Apache-2.0"
    members = ("example",)
    Options = GaokaoBenchOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        question = text_field(record, "question", "missing_question")
        analysis = optional_text(record, "analysis")
        answer = _answer(record)
        if not analysis:
            raise ExampleOmitted("no_solution", "the publisher gives no analysis")
        return Example(
            id=self.stable_id(row),
            question=_NUMBER_AND_SCORE.sub("", question),
            blocks=(Block(kind="text", text=f"{analysis}\n答案是\\boxed{{{answer}}}。"),),
            answer=answer,
            language="zh",
            format="cot",
            source=self.source,
            licence=self.licence,
        )


def _answer(record: dict[str, Any]) -> str:
    value = record.get("answer")
    if isinstance(value, list):
        if not all(isinstance(letter, str) for letter in value):
            raise ExampleFault("bad_value", "'answer' is not a list of letters")
        if len(value) != 1:
            raise ExampleOmitted("no_final_answer", f"there are {len(value)} answers")
        return value[0].strip()
    answer = optional_text(record, "answer").rstrip("。.")
    if not answer:
        raise ExampleOmitted("no_solution", "the publisher gives no answer")
    if "\n" in answer or len(answer) > _MAX_ANSWER_CHARACTERS:
        raise ExampleOmitted("no_final_answer", "the answer is a worked solution")
    if answer.startswith("$") and answer.endswith("$") and answer.count("$") == 2:
        answer = answer.strip("$ ")
    return answer
