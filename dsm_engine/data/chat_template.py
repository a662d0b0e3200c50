"""Hugging Face chat templates: Jinja, rendered as transformers' `apply_chat_template` does.

What the template writes may hold control tokens (`<|im_start|>`), the same characters in a question
or an answer are text. The two are told apart by rendering the conversation once with sentinels in
the place of its contents.
"""

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime, time
from pathlib import Path
from typing import Any, NoReturn

from dsm_engine.data.chat_template_files import (
    SPECIAL_TOKENS,
    read_chat_template,
    read_special_tokens,
)
from dsm_engine.data.example import Example, ExampleFault
from dsm_engine.data.segments import Segment
from dsm_engine.data.templates import BESIDE_TOKENIZER, Template, TemplateRecipe
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import read_text

_QUESTION, _ANSWER = "\ue000question\ue001", "\ue000answer\ue001"

_Render = Callable[[str, str | None], str]
"""(the user's message, the assistant's or None for the prompt) -> text"""


class ChatTemplate(Template):
    """A conversation of one question and its answer.

    Supervised is all that stands behind the evaluation prompt, interpreter output apart, up to and
    with the control token that ends the turn. Questions and answers are stripped of whitespace at
    both ends, as many templates do themselves. The ids are those of
    `apply_chat_template(tokenize=True)`, but that no token joins prompt, answer and output.
    """

    adds_bos = adds_eos = False

    def __init__(
        self, recipe: TemplateRecipe, where: str, *, jinja: str, tokenizer: Tokenizer
    ) -> None:
        today = datetime.combine(datetime.now().date(), time())
        dated = f"\n{today:%Y-%m-%d}" if "strftime_now" in jinja else ""
        super().__init__(recipe, where, source=jinja + dated)
        if recipe.answer_prefix:
            raise DsmError(f"{where}: answer_prefix: a chat template writes its own; leave it out")
        self._where = where
        self._render_text = _renderer(jinja, recipe.variables, tokenizer, where, today)
        prompt, whole = self._render_text(_QUESTION, None), self._render_text(_QUESTION, _ANSWER)
        _check_contents(prompt, whole, where)
        answer = whole.removeprefix(prompt)
        controls = _control_pattern(tokenizer.controls)
        before_question, after_question = prompt.split(_QUESTION)
        before_answer, after_answer = answer.split(_ANSWER)
        self._before_question = _split(before_question, controls)
        self._after_question = _split(after_question, controls)
        self._after_answer = _split(after_answer, controls)
        self.answer_prefix = before_answer
        self.answer_end = next((part.text for part in self._after_answer if part.control), None)
        self._check_answer(controls, before_answer)
        for part in (*self._before_question, *self._after_question, *self._after_answer):
            if part.control:
                tokenizer.control_id(part.text)  # raises where the token cannot be used

    def render(self, example: Example) -> list[Segment]:
        """See `Template`. An ExampleFault too where the template treats this text otherwise."""
        answer = _stripped(self._answer_segments(example))
        message = self._message(example.question, example.language, example.format)
        self._check_rendering(message, "".join(part.text for part in answer))
        supervised = [Segment(text=self.answer_prefix, supervised=True), *answer]
        ended = False
        for part in self._after_answer:
            supervised.append(Segment(text=part.text, supervised=not ended, control=part.control))
            ended |= part.control
        return self._prompt_segments(message) + _joined(supervised)

    def prompt_segments(self, question: str, language: str, format: str) -> list[Segment]:
        message = self._message(question, language, format)
        prompt = self._prompt_segments(message)
        if "".join(part.text for part in prompt) != self._render_text(message, None):
            raise DsmError(f"{self._where}: the chat template changes the question {message!r:.80}")
        return prompt

    def _message(self, question: str, language: str, format: str) -> str:
        return self._filled_prompt(question, language, format).strip()

    def _prompt_segments(self, message: str) -> list[Segment]:
        return _joined([*self._before_question, Segment(text=message), *self._after_question])

    def _check_answer(self, controls: re.Pattern[str], before_answer: str) -> None:
        if self.answer_end is None:
            raise DsmError(
                f"{self._where}: the chat template writes no control token of this tokenizer behind"
                " an answer, so a model would not learn to end: write {{ eos_token }} there"
            )
        if found := controls.search(before_answer):
            raise DsmError(
                f"{self._where}: the chat template writes {found[0]!r} between the evaluation "
                "prompt and the answer: the part under add_generation_prompt must end where an "
                "answer begins (`variables` can set its switches, such as enable_thinking)"
            )

    def _check_rendering(self, message: str, answer: str) -> None:
        """That the template has done with these contents what it did with the sentinels."""
        parts = (self._before_question, [Segment(text=message)], self._after_question)
        tail = "".join(part.text for part in self._after_answer)
        prompt = "".join(segment.text for part in parts for segment in part)
        try:
            rendered = self._render_text(message, answer)
        except DsmError as error:
            raise ExampleFault("template_refuses", str(error)) from error
        if rendered != f"{prompt}{self.answer_prefix}{answer}{tail}":
            raise ExampleFault(
                "template_changes_text", f"{self._where}: the chat template drops or changes text"
            )


def load_chat_template(
    recipe: TemplateRecipe, where: str, folder: Path, tokenizer: Tokenizer | None
) -> ChatTemplate:
    """The chat template that a recipe names, by a path in `folder` or beside the tokenizer."""
    assert recipe.chat_template is not None
    if tokenizer is None:
        raise DsmError(f"{where}: a chat template needs a tokenizer, and there is none yet")
    if recipe.chat_template == BESIDE_TOKENIZER:
        jinja, where = read_chat_template(tokenizer.path.parent), str(tokenizer.path.parent)
        if jinja is None:
            raise DsmError(
                f"{where}: has no chat_template.jinja, and no chat_template in "
                "tokenizer_config.json; give the path of one"
            )
    else:
        path = folder / recipe.chat_template
        jinja, where = read_text(path), str(path)
    return ChatTemplate(recipe, where, jinja=jinja, tokenizer=tokenizer)


def _renderer(
    jinja: str, variables: dict[str, Any], tokenizer: Tokenizer, where: str, today: datetime
) -> _Render:
    import jinja2

    try:
        template = _environment(today).from_string(jinja)
    except jinja2.TemplateError as error:
        raise DsmError(f"{where}: is no chat template: {_one_line(error)}") from error
    values = {"tools": None, "documents": None, **_special_tokens(tokenizer), **variables}

    def render(question: str, answer: str | None) -> str:
        messages = [{"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return template.render(
                messages=messages, add_generation_prompt=answer is None, **values
            )
        except Exception as error:  # a template can raise anything
            raise DsmError(
                f"{where}: the chat template refuses a conversation of one question and its "
                f"answer: {_one_line(error)}"
            ) from error

    return render


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Those that are control tokens here, by the names a template knows them by."""
    tokens = read_special_tokens(tokenizer.path.parent)
    named = {name: text for name, text in tokens.items() if text in tokenizer.controls}
    for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        content = next((text for text, id in tokenizer.controls.items() if id == token), None)
        named.pop(name, None)
        if content is not None:
            named[name] = content
    return named


def _environment(today: datetime) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, with which some templates mark the answer, changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    class Undefined(jinja2.Undefined):
        """Writing a special token that is not there would lose it; asking for it is well."""

        def __str__(self) -> str:
            if self._undefined_name in SPECIAL_TOKENS:
                raise jinja2.UndefinedError(
                    f"it writes {self._undefined_name}, and tokenizer_config.json names no control"
                    " token of this tokenizer for it (`variables` can)"
                )
            return super().__str__()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        undefined=Undefined,
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = today.strftime
    return environment


def _check_contents(prompt: str, whole: str, where: str) -> None:
    """That question and answer stand once each in the rendering, behind the same prompt."""
    for text, content in ((prompt, _QUESTION), (whole, _QUESTION), (whole, _ANSWER)):
        if text.count(content) != 1:
            what = "question" if content == _QUESTION else "answer"
            done = "drops or changes" if content not in text else "repeats"
            raise DsmError(f"{where}: the chat template {done} the {what}")
    if not whole.startswith(prompt):
        length = next(i for i in range(len(prompt)) if not whole.startswith(prompt[: i + 1]))
        raise DsmError(
            f"{where}: the chat template's prompt is not how its whole conversation begins: after "
            f"{prompt[max(0, length - 20) : length]!r} stand {prompt[length : length + 20]!r} and "
            f"{whole[length : length + 20]!r}; `variables` can set its switches"
        )


def _control_pattern(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _split(text: str, controls: re.Pattern[str]) -> list[Segment]:
    """The template's own text, cut at control tokens."""
    segments, position = [], 0
    for match in controls.finditer(text):
        segments.append(Segment(text=text[position : match.start()]))
        segments.append(Segment(text=match[0], control=True))
        position = match.end()
    return [*segments, Segment(text=text[position:])]


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    """Without empty segments, and with neighbours as one that are alike."""
    joined: list[Segment] = []
    for segment in segments:
        previous = joined[-1] if joined else None
        if not segment.text:
            continue
        if (
            previous is not None
            and not (previous.control or segment.control)
            and previous.supervised == segment.supervised
        ):
            text = joined.pop().text + segment.text
            segment = Segment(text=text, supervised=segment.supervised)
        joined.append(segment)
    return joined


def _stripped(answer: list[Segment]) -> list[Segment]:
    """The segments of an answer without the whitespace at its two ends."""
    texts = [segment.text for segment in answer]
    texts[0] = texts[0].lstrip()
    while not (stripped := texts[-1].rstrip()):
        texts.pop()
    texts[-1] = stripped
    return [
        Segment(text=text, supervised=segment.supervised)
        for text, segment in zip(texts, answer, strict=False)
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
