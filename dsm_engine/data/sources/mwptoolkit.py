"""The sets of MWPToolkit: word problems with equations, as programs that were checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dsm_engine.data.example import (
    Block,
    Example,
    ExampleFault,
    ExampleOmitted,
    detect_language,
)
from dsm_engine.data.sources.equation_systems import NotSolved, solve_system
from dsm_engine.data.sources.equations import BadEquation
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field

_TREEBANK = {"``": '"', "''": '"', "-LRB-": "(", "-RRB-": ")"}
_JOINED_TO_THE_LEFT = re.compile(r"[.,!;)]|\?+|''|-RRB-|['’](?:s|S)?|n't")
_JOINED_TO_THE_RIGHT = re.compile(r"[$(]|``|-LRB-")
_STOPS = (".", ",")
_CONDITION = re.compile("[<>]")


class MwpToolkitReader(Reader):
    """alg514, DRAW, HMWP and MAWPS (`original_text`, `equation`, `ans`), Dolphin1878 (`text`,
    `equations`, `ans_simple`), MAWPS-single (`sQuestion`, `lEquations`, `lSolutions`) and ASDiv-A
    (`Body`, `Question`, `Formula`, `Answer`), to PoT.

    What a record is, its keys say. Segmented text is joined again. An equation solved for its
    unknown becomes the program of `ape210k`, others become a SymPy program, both of which print
    the values in the order and form of the published answer. Rows whose equations give others
    are omitted (`answer_mismatch`), as are those with none that are read (`bad_equation`) or
    solved (`not_solved`), and those without an answer (`no_final_answer`).
    """

    name = "mwptoolkit"
    licence = "MIT (toolkit); the set's own is not given"

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        problem = _problem(record)
        if not problem.answers:
            raise ExampleOmitted("no_final_answer", "the publisher gives no answer")
        described = f"{'; '.join(problem.equations):.80}, {'; '.join(problem.answers):.80}"
        try:
            solution = solve_system(problem.equations, problem.answers, problem.targets)
        except NotSolved as error:
            raise ExampleOmitted("not_solved", f"{described}: {error}") from error
        except BadEquation as error:
            raise ExampleOmitted("bad_equation", f"{described}: {error}") from error
        if solution is None:
            raise ExampleOmitted("answer_mismatch", f"{described}: the values are others")
        return Example(
            id=self.stable_id(row),
            question=problem.question,
            blocks=(Block(kind="program", text=solution.program),),
            answer=solution.printed,
            language=detect_language(problem.question),
            format="pot",
            source=self.source,
            licence=self.licence,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    question: str
    equations: Sequence[str]
    answers: Sequence[str]
    targets: Sequence[str] = ()
    """What is asked for; the unknowns where it is empty."""


def _problem(record: dict[str, Any]) -> _Problem:
    if "original_text" in record:
        return _of_one_text(record)
    if "sQuestion" in record:
        return _of_mawps_single(record)
    if "Formula" in record:
        return _of_asdiv(record)
    if "equations" in record:
        return _of_dolphin(record)
    raise ExampleFault(
        "bad_value",
        "has none of 'original_text', 'equations', 'sQuestion' and 'Formula', "
        "one of which every set has that is read here",
    )


def _of_one_text(record: dict[str, Any]) -> _Problem:
    text = text_field(record, "original_text", "missing_question")
    answers = record.get("ans")
    if isinstance(answers, int | float | str):
        answers = [answers]
    return _Problem(
        question=join_segments(text),
        equations=text_field(record, "equation", "missing_answer").split(";"),
        answers=_numbers(answers, "ans"),
    )


def _of_dolphin(record: dict[str, Any]) -> _Problem:
    """`unkn:` names what is asked for, `equ:` an equation or a condition.

    Conditions (`x>0`) are left out: which of several solutions is meant, the answer says.
    """
    lines = [line.partition(":") for line in _texts(record, "equations")]
    return _Problem(
        question=text_field(record, "text", "missing_question"),
        equations=[
            text.strip()
            for kind, _, text in lines
            if kind != "unkn" and not _CONDITION.search(text)
        ],
        answers=_numbers(record.get("ans_simple"), "ans_simple"),
        targets=[
            target.strip()
            for kind, _, text in lines
            if kind == "unkn"
            for target in text.split(",")
        ],
    )


def _of_mawps_single(record: dict[str, Any]) -> _Problem:
    equations = _texts(record, "lEquations")
    return _Problem(
        question=text_field(record, "sQuestion", "missing_question"),
        equations=[text if "=" in text else f"x={text}" for text in equations],
        answers=_numbers(record.get("lSolutions"), "lSolutions"),
    )


def _of_asdiv(record: dict[str, Any]) -> _Problem:
    body = text_field(record, "Body", "missing_question")
    question = text_field(record, "Question", "missing_question")
    formula = text_field(record, "Formula", "missing_answer").partition("=")[0]
    number = optional_text(record, "Answer").partition("(")[0].strip()
    return _Problem(
        question=f"{body} {question}",
        equations=[f"x={formula}"],
        answers=[number] if number else [],
    )


def _texts(record: dict[str, Any], key: str) -> list[str]:
    values = record.get(key)
    if values is None:
        raise ExampleFault("missing_answer", f"{key!r} is missing")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ExampleFault("bad_value", f"{key!r} is no list of texts")
    return values


def _numbers(values: Any, key: str) -> list[str]:
    """Numbers as they are to be printed: 26 for 26.0."""
    if values is None:
        return []
    if not isinstance(values, list):
        raise ExampleFault("bad_value", f"{key!r} is no list")
    if any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in values):
        raise ExampleFault("bad_value", f"{key!r} is no list of numbers")
    return [str(_whole(value)).strip() for value in values]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def join_segments(text: str) -> str:
    """Text again of words that stand apart, as `2 % .` or `多少 元 ？`. No character is changed
    but white space and, in English, the Penn Treebank's brackets and quotation marks.

    Chinese words are joined, Latin letters and numbers are not joined to each other: `B 2 地` is
    not `B2地`, nor `48 . 5` a decimal. In English, marks are joined to the words they belong to.
    """
    words = text.split()
    if detect_language(text) == "zh":
        spaces = [" " if _stay_apart(left, right) else "" for left, right in pairwise(words)]
    else:
        spaces = ["" if _stand_together(left, right) else " " for left, right in pairwise(words)]
        words = [_TREEBANK.get(word, word) for word in words]
    return "".join(word + space for word, space in zip(words, [*spaces, ""], strict=True))


def _stay_apart(left: str, right: str) -> bool:
    return right not in _STOPS and _may_be_number(left[-1]) and _may_be_number(right[0])


def _may_be_number(character: str) -> bool:
    return character in _STOPS or (character.isascii() and character.isalnum())


def _stand_together(left: str, right: str) -> bool:
    if right == "%":
        return left[-1].isdigit()
    return bool(_JOINED_TO_THE_LEFT.fullmatch(right) or _JOINED_TO_THE_RIGHT.fullmatch(left))
