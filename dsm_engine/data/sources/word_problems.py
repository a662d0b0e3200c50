"""Ape210K and Math23K: Chinese word problems with equations, as programs that were checked."""

from typing import Any

from dsm_engine.data.example import Block, Example, ExampleOmitted
from dsm_engine.data.sources.equations import BadEquation, solve
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field


class EquationReader(Reader):
    """`{"id", "original_text", "segmented_text", "equation": "x=...", "ans"}`, to PoT.

    The program computes the equation in fractions and prints the value in the form of `ans`
    (`1(5/6)` as `11/6`). Rows whose equation gives another value are omitted (`answer_mismatch`),
    as are those whose equation or answer is none (`bad_equation`).
    """

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        question = text_field(record, "original_text", "missing_question")
        equation = text_field(record, "equation", "missing_answer")
        answer = optional_text(record, "ans")
        try:
            solution = solve(equation, answer)
        except BadEquation as error:
            raise ExampleOmitted(
                "bad_equation", f"{equation:.80}, {answer:.80}: {error}"
            ) from error
        if solution is None:
            raise ExampleOmitted("answer_mismatch", f"{equation:.80} is not {answer:.80}")
        return Example(
            id=f"{self.source}/{optional_text(record, 'id') or row.digest}",
            question=question,
            blocks=(Block(kind="program", text=solution.program),),
            answer=solution.printed,
            language="zh",
            format="pot",
            source=self.source,
            licence=self.licence,
        )


class Ape210kReader(EquationReader):
    """Ape210K, one object a line."""

    name = "ape210k"
    licence = "MIT"


class Math23kReader(EquationReader):
    """Math23K, objects spread over lines."""

    name = "math23k"
    licence = "MIT"
