"""From an example to the text the model sees, cut into segments that are trained on or not.

A template is data: a YAML file with the prompt, the fences and a suffix for each format and
language. User text is inserted once and never looked at again, so braces in it mean nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash
from pydantic import Field

from dsm_engine.data.example import Block, Example, ExampleFault
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest
from dsm_engine.recipes import Section, read_yaml, validate_recipe

_FOLDER = Path(__file__).parent / "templates"
_FENCE_LINE = re.compile(r"^```", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of text that is tokenized by itself, in training as in evaluation."""

    text: str
    supervised: bool
    control: bool = False


class TemplateRecipe(Section):
    """What a template's YAML file holds."""

    name: str
    prompt: str
    """All that stands before the answer; `{question}` once, `{suffix}` at most once."""
    answer_prefix: str = ""
    """First characters of the answer: supervised, and no part of the evaluation prompt."""
    program: str
    """How a program is fenced; `{code}` once."""
    output: str
    """How what the interpreter printed is fenced; `{text}` once."""
    suffixes: dict[str, dict[str, str]] = Field(default_factory=dict)
    """format -> language -> instruction after the question."""


class Template:
    """Renders examples for training and questions for evaluation, with the same boundaries."""

    adds_bos = True
    adds_eos = True

    def __init__(self, recipe: TemplateRecipe, where: str) -> None:
        _check_placeholders(recipe, where)
        self._recipe = recipe
        self.name = recipe.name
        self.answer_prefix = recipe.answer_prefix
        canonical = orjson.dumps(recipe.model_dump(), option=orjson.OPT_SORT_KEYS)
        self.fingerprint = xxhash.xxh3_64(canonical).hexdigest()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Every instruction that may follow a question, each once."""
        by_language = self._recipe.suffixes.values()
        return tuple(dict.fromkeys(text for texts in by_language for text in texts.values()))

    def render(self, example: Example) -> list[Segment]:
        """The prompt, then answer and interpreter output in turn. BOS and EOS are not text.

        Raises ExampleFault where there is no question, no answer, or blocks that cannot be fenced.
        """
        _check_example(example)
        prompt = self.prompt(example.question, example.language, example.format)
        segments = [Segment(text=prompt, supervised=False)]
        answer = self.answer_prefix
        after_program = False
        for block in example.blocks:
            if block.kind == "output":
                segments.append(Segment(text=answer, supervised=True))
                segments.append(Segment(text=self.output_block(block.text), supervised=False))
                answer = ""
            elif block.kind == "program":
                opens_answer = len(segments) == 1 and answer == self.answer_prefix
                before = answer or segments[-1].text
                newline = "" if opens_answer or before.endswith("\n") else "\n"
                answer += newline + self.program_block(block.text)
            else:
                newline = "\n" if after_program and not block.text.startswith("\n") else ""
                answer += newline + block.text
            after_program = block.kind == "program"
        if answer:
            segments.append(Segment(text=answer, supervised=True))
        return segments

    def prompt(self, question: str, language: str, format: str) -> str:
        """What stands before the answer, in training and in evaluation."""
        values = {"question": question.strip()}
        if "{suffix}" in self._recipe.prompt:
            values["suffix"] = self._suffix(language, format)
        return _fill(self._recipe.prompt, values)

    def program_block(self, code: str) -> str:
        """The program in its fences."""
        return _fill(self._recipe.program, {"code": code.strip("\n")})

    def output_block(self, text: str) -> str:
        """What the interpreter printed, in its fences, to follow a program's closing fence."""
        return _fill(self._recipe.output, {"text": text.strip("\n")})

    def _suffix(self, language: str, format: str) -> str:
        by_language = self._recipe.suffixes.get(format, {})
        if language not in by_language:
            raise DsmError(f"template {self.name!r} has no suffix for {format!r} in {language!r}")
        return by_language[language]


def load_template(name_or_path: str | Path) -> Template:
    """A template of the package by name, or any by the path of its YAML file."""
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(name_or_path)
    else:
        path = _FOLDER / f"{text}.yaml"
        known = sorted(found.stem for found in _FOLDER.glob("*.yaml"))
        if text not in known:
            raise DsmError(
                f"unknown template {text!r} {nearest(text, known)}; or give a .yaml path"
            )
    return Template(validate_recipe(read_yaml(path), TemplateRecipe, str(path)), str(path))


def _fill(pattern: str, values: dict[str, str]) -> str:
    """Replaces each `{key}` of the pattern in one pass: inserted text is not searched again."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), pattern)


def _check_placeholders(recipe: TemplateRecipe, where: str) -> None:
    needed = (("prompt", "question"), ("program", "code"), ("output", "text"))
    for field, key in needed:
        if getattr(recipe, field).count("{" + key + "}") != 1:
            raise DsmError(f"{where}: {field}: must hold {{{key}}} exactly once")
    if recipe.prompt.count("{suffix}") > 1:
        raise DsmError(f"{where}: prompt: must hold {{suffix}} at most once")


def _check_example(example: Example) -> None:
    if not example.question.strip():
        raise ExampleFault("missing_question", "the question is blank")
    if not any(block.text.strip() for block in example.blocks if block.kind != "output"):
        raise ExampleFault("missing_answer", "the answer is blank")
    previous: Block | None = None
    for block in example.blocks:
        if block.kind == "output" and (previous is None or previous.kind != "program"):
            raise ExampleFault("output_without_program", "an output block follows no program")
        if block.kind == "program" and _FENCE_LINE.search(block.text):
            raise ExampleFault("fence_in_program", "a line of a program begins with ```")
        previous = block
