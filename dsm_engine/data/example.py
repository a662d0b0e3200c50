"""One training example, whatever source it came from, and the faults an example can have."""

import re
from dataclasses import dataclass
from typing import Literal

from dsm_engine.errors import DsmError

Language = Literal["en", "zh"]
Format = Literal["cot", "pot", "tir"]
BlockKind = Literal["text", "program", "output"]

_FENCED = re.compile(
    r"^```(?P<fence>python|output)[ \t]*\n(?P<body>.*?)(?:^```[ \t]*$)", re.MULTILINE | re.DOTALL
)
_FENCE_OPENS = re.compile(r"^```(?:python|output)[ \t]*$", re.MULTILINE)
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATIN_WORD = re.compile("[A-Za-z]{3,}")  # shorter ones are names of variables and points


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A stretch of an answer: prose, a program, or what the interpreter printed for it."""

    kind: BlockKind
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A question with one worked answer."""

    id: str
    """Stable: made from the content where the source has no key of its own."""
    question: str
    blocks: tuple[Block, ...]
    """The worked answer, in reading order. Programs and outputs come without their fences."""
    answer: str
    """The final answer alone; empty where the source does not give it."""
    language: Language
    format: Format
    source: str
    topic: str = ""
    licence: str = ""
    notebook: bool = False
    """Its programs are cells of a notebook: names live on, last expressions are displayed."""


class ExampleFault(DsmError):
    """What is wrong with one example. The preprocessing policy decides what it leads to."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        """The ledger's key, such as `missing_answer`."""


class ExampleOmitted(ExampleFault):
    """A row its publisher left without a usable solution: dropped and counted by any policy."""


def parse_solution(solution: str) -> tuple[Block, ...]:
    """Splits a solution at its ```` ```python ```` and ```` ```output ```` fences.

    Fences of other languages stay prose. Rendering the blocks gives the solution back, provided
    that its fences begin lines and nothing but one newline stands between a program's closing
    fence and its output. Raises ExampleFault where a fence is not closed.
    """
    blocks: list[Block] = []
    end = 0
    for match in _FENCED.finditer(solution):
        _add_prose(blocks, solution[end : match.start()], before_output=match["fence"] == "output")
        kind: BlockKind = "program" if match["fence"] == "python" else "output"
        blocks.append(Block(kind=kind, text=match["body"].removesuffix("\n")))
        end = match.end()
        if kind == "output" and solution.startswith("\n", end):
            end += 1
    _add_prose(blocks, solution[end:], before_output=False)
    return tuple(blocks)


def solution_format(blocks: tuple[Block, ...]) -> Format:
    """TIR where an interpreter answered, PoT where there are only programs, CoT otherwise."""
    kinds = {block.kind for block in blocks}
    if "output" in kinds:
        return "tir"
    return "pot" if "program" in kinds else "cot"


def detect_language(text: str) -> Language:
    """Chinese where at least half as many Chinese characters as Latin words stand, LaTeX aside."""
    num_cjk = len(_CJK.findall(text))
    if num_cjk == 0:
        return "en"
    num_words = len(_LATIN_WORD.findall(_LATEX_COMMAND.sub(" ", text)))
    return "zh" if 2 * num_cjk >= num_words else "en"


def _add_prose(blocks: list[Block], text: str, *, before_output: bool) -> None:
    if _FENCE_OPENS.search(text):
        raise ExampleFault("open_fence", "a ``` fence is opened and not closed")
    if before_output and not text.strip():
        return
    if text:
        blocks.append(Block(kind="text", text=text))
