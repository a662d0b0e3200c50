"""From an example to the text the model sees, cut into segments that are trained on or not.

A template is data: a YAML file with the prompt, the fences and a suffix for each format and
language, or a Hugging Face chat template (`chat_template.py`). User text is inserted once and never
looked at again, so braces in it mean nothing.
"""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import xxhash
from pydantic import Field

from dsm_engine.data.example import Block, Example, ExampleFault
from dsm_engine.data.segments import Segment
from dsm_engine.errors import DsmError
from dsm_engine.recipes import Section, nearest, read_yaml, validate_recipe

if TYPE_CHECKING:
    from dsm_engine.data.tokenizers import Tokenizer

_FOLDER = Path(__file__).parent / "templates"
_FENCE_LINE = re.compile(r"^```", re.MULTILINE)
BESIDE_TOKENIZER = "tokenizer"
"""Names the chat template that stands beside the tokenizer."""


class TemplateRecipe(Section):
    """What a template's YAML file holds."""

    name: str
    chat_template: str | None = None
    """A Hugging Face chat template: a Jinja file, relative to this one, or `tokenizer` for the one
    beside the tokenizer."""
    variables: dict[str, Any] = Field(default_factory=dict)
    """What the chat template gets besides the messages, such as `enable_thinking: false`."""
    prompt: str
    """All that stands before the answer, or with a chat template the user's message; `{question}`
    once, `{suffix}` at most once."""
    answer_prefix: str = ""
    """First characters of the answer: supervised, and no part of the evaluation prompt."""
    program: str
    """How a program is fenced; `{code}` once."""
    output: str
    """How what the interpreter printed is fenced; `{text}` once."""
    suffixes: dict[str, dict[str, str]] = Field(default_factory=dict)
    """format -> language -> instruction after the question."""


class Template(ABC):
    """Renders examples for training and questions for evaluation, with the same boundaries."""

    adds_bos: bool
    """Whether BOS stands before what is rendered."""
    adds_eos: bool
    """Whether EOS stands behind it, supervised."""
    answer_end: str | None = None
    """The control token that the template itself writes behind an answer."""

    def __init__(self, recipe: TemplateRecipe, where: str, *, source: str = "") -> None:
        """`source` is the chat template, which the fingerprint covers."""
        _check_placeholders(recipe, where)
        self._recipe = recipe
        self.name = recipe.name
        self.answer_prefix = recipe.answer_prefix
        exclude = {"chat_template"} if source else {"chat_template", "variables"}
        canonical = orjson.dumps(recipe.model_dump(exclude=exclude), option=orjson.OPT_SORT_KEYS)
        self.fingerprint = xxhash.xxh3_64(canonical + source.encode()).hexdigest()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Every instruction that may follow a question, each once."""
        by_language = self._recipe.suffixes.values()
        return tuple(dict.fromkeys(text for texts in by_language for text in texts.values()))

    @abstractmethod
    def render(self, example: Example) -> list[Segment]:
        """The prompt, then answer and interpreter output in turn.

        Raises ExampleFault where there is no question, no answer, or blocks that cannot be fenced.
        """

    @abstractmethod
    def prompt_segments(self, question: str, language: str, format: str) -> list[Segment]:
        """What stands before the answer, in training and in evaluation."""

    def program_block(self, code: str) -> str:
        """The program in its fences."""
        return _fill(self._recipe.program, {"code": code.strip("\n")})

    def output_block(self, text: str) -> str:
        """What the interpreter printed, in its fences, to follow a program's closing fence."""
        return _fill(self._recipe.output, {"text": text.strip("\n")})

    def _filled_prompt(self, question: str, language: str, format: str) -> str:
        values = {"question": question.strip()}
        if "{suffix}" in self._recipe.prompt:
            values["suffix"] = self._suffix(language, format)
        return _fill(self._recipe.prompt, values)

    def _answer_segments(self, example: Example) -> list[Segment]:
        """Prefix, prose and programs supervised, interpreter output not."""
        check_example(example)
        segments: list[Segment] = []
        prefix = answer = self._recipe.answer_prefix
        after_program = False
        for block in example.blocks:
            if block.kind == "output":
                segments.append(Segment(text=answer, supervised=True))
                segments.append(Segment(text=self.output_block(block.text)))
                answer = ""
            elif block.kind == "program":
                opens_answer = not segments and answer == prefix
                before = answer or (segments[-1].text if segments else "")
                newline = "" if opens_answer or before.endswith("\n") else "\n"
                answer += newline + self.program_block(block.text)
            else:
                newline = "\n" if after_program and not block.text.startswith("\n") else ""
                answer += newline + block.text
            after_program = block.kind == "program"
        if answer:
            segments.append(Segment(text=answer, supervised=True))
        return segments

    def _suffix(self, language: str, format: str) -> str:
        by_language = self._recipe.suffixes.get(format, {})
        if language not in by_language:
            raise DsmError(f"template {self.name!r} has no suffix for {format!r} in {language!r}")
        return by_language[language]


class TextTemplate(Template):
    """A prompt as plain text, between BOS and EOS."""

    adds_bos = adds_eos = True

    def render(self, example: Example) -> list[Segment]:
        answer = self._answer_segments(example)
        prompt = self.prompt_segments(example.question, example.language, example.format)
        return prompt + answer

    def prompt_segments(self, question: str, language: str, format: str) -> list[Segment]:
        return [Segment(text=self.prompt(question, language, format))]

    def prompt(self, question: str, language: str, format: str) -> str:
        """What stands before the answer, as one text."""
        return self._filled_prompt(question, language, format)


def load_template(name_or_path: str | Path, tokenizer: "Tokenizer | None" = None) -> Template:
    """A template of the package by name, any by the path of its YAML file, or a chat template: by
    the path of its Jinja file, or `tokenizer` for the one beside the tokenizer.

    A chat template needs the tokenizer, whose control tokens it writes.
    """
    text = str(name_or_path)
    if text == BESIDE_TOKENIZER or text.endswith(".jinja"):
        # Bare: the user's message is the question alone.
        path = _FOLDER / "chat.yaml"
        bare = {"name": Path(text).stem, "chat_template": text, "prompt": "{question}"}
        values = read_yaml(path) | bare | {"suffixes": {}}
        folder = Path()
    else:
        path = _template_path(text)
        values, folder = read_yaml(path), path.parent
    recipe = validate_recipe(values, TemplateRecipe, str(path))
    if recipe.chat_template is None:
        if recipe.variables:
            raise DsmError(f"{path}: variables: are those of a chat template, and there is none")
        return TextTemplate(recipe, str(path))
    from dsm_engine.data.chat_template import load_chat_template

    return load_chat_template(recipe, str(path), folder, tokenizer)


def _template_path(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return Path(name_or_path)
    known = sorted(found.stem for found in _FOLDER.glob("*.yaml"))
    if name_or_path not in known:
        raise DsmError(
            f"unknown template {name_or_path!r} {nearest(name_or_path, known)}; or give the path "
            f"of a .yaml or .jinja file, or {BESIDE_TOKENIZER!r}"
        )
    return _FOLDER / f"{name_or_path}.yaml"


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


def check_example(example: Example) -> None:
    """Raises ExampleFault where an example cannot be rendered."""
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
