"""Rendering: the published prompt to the letter, supervision from the structure of the answer."""

from pathlib import Path

import pytest

from dsm_engine.data.example import (
    Block,
    Example,
    ExampleFault,
    Format,
    Language,
    detect_language,
    parse_solution,
    solution_format,
)
from dsm_engine.data.templates import Segment, load_template
from dsm_engine.errors import DsmError

COT_EN = "Please reason step by step, and put your final answer within \\boxed{}."
TOOL_ZH = "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。"


def make_example(
    *blocks: Block,
    question: str = "What is 1+1?",
    language: Language = "en",
    format: Format = "cot",
) -> Example:
    return Example(
        id="x",
        question=question,
        blocks=blocks,
        answer="2",
        language=language,
        format=format,
        source="test",
    )


def text(value: str) -> Block:
    return Block(kind="text", text=value)


def program(value: str) -> Block:
    return Block(kind="program", text=value)


def output(value: str) -> Block:
    return Block(kind="output", text=value)


@pytest.fixture(scope="module")
def template():
    return load_template("deepseekmath")


def test_a_cot_example_renders_as_published(template):
    segments = template.render(make_example(text("It is \\boxed{2}.")))
    assert segments == [
        Segment(text=f"User: What is 1+1?\n{COT_EN}\n\nAssistant:", supervised=False),
        Segment(text=" It is \\boxed{2}.", supervised=True),
    ]


def test_the_evaluation_prompt_is_the_training_prompt(template):
    example = make_example(text("二"), question=" 1+1 等于几？\n", language="zh", format="tir")
    prompt = template.prompt(example.question, "zh", "tir")
    assert prompt == f"User: 1+1 等于几？\n{TOOL_ZH}\n\nAssistant:"
    assert template.render(example)[0].text == prompt


def test_interpreter_output_is_the_only_unsupervised_part_of_an_answer(template):
    blocks = (program("print(1)"), output("1"), text("The answer is \\boxed{1}."))
    assert template.render(make_example(*blocks, format="tir"))[1:] == [
        Segment(text=" ```python\nprint(1)\n```", supervised=True),
        Segment(text="\n```output\n1\n```\n", supervised=False),
        Segment(text="The answer is \\boxed{1}.", supervised=True),
    ]


def test_a_fence_begins_a_line_wherever_a_program_stands(template):
    blocks = (text("First."), program("a = 1"), program("print(a)"), text("So."))
    segments = template.render(make_example(*blocks, format="pot"))
    assert segments[1].text == " First.\n```python\na = 1\n```\n```python\nprint(a)\n```\nSo."


def test_a_pot_example_ends_at_its_closing_fence(template):
    segments = template.render(make_example(program("print(2)\n"), format="pot"))
    assert segments[1] == Segment(text=" ```python\nprint(2)\n```", supervised=True)
    assert "write a Python program" in segments[0].text


def test_every_format_has_a_suffix_in_both_languages(template):
    prompts = {template.prompt("q", lang, fmt) for lang in ("en", "zh") for fmt in ("cot", "pot")}
    assert len(prompts) == 4
    with pytest.raises(DsmError, match="no suffix for 'cot' in 'fr'"):
        template.prompt("q", "fr", "cot")


def test_suffixes_are_what_follows_the_questions(template):
    assert len(template.suffixes) == 6
    for suffix, format in zip(template.suffixes[::2], ("cot", "pot", "tir"), strict=True):
        assert template.prompt("q", "en", format) == f"User: q\n{suffix}\n\nAssistant:"


def test_placeholders_in_a_question_are_plain_text(template):
    question = "Let {x} be {suffix} and {question} in \\frac{1}{2}."
    assert template.prompt(question, "en", "cot").startswith(f"User: {question}\nPlease")


@pytest.mark.parametrize(
    "solution",
    [
        "Only prose, with `code` and\n```cpp\nint x;\n```\ninside.",
        "```python\nprint(1)\n```",
        "Let us see.\n```python\nprint(1)\n```\n```output\n1\n```\nThe answer is \\boxed{1}.",
        "```python\na\n\nb\n```\n```output\n\n```\n```python\nc\n```\n```output\nTrue\n```\n",
        "a\n\n```python\nx = 1\n```\n\nThen\n```python\nprint(x)\n```",
    ],
)
def test_parsing_and_rendering_give_a_solution_back(template, solution):
    blocks = parse_solution(solution)
    segments = template.render(make_example(*blocks, format=solution_format(blocks)))
    assert "".join(segment.text for segment in segments[1:]) == " " + solution


def test_the_format_follows_from_the_fences():
    assert solution_format(parse_solution("prose")) == "cot"
    assert solution_format(parse_solution("```python\n1\n```")) == "pot"
    assert solution_format(parse_solution("```python\n1\n```\n```output\n1\n```")) == "tir"


@pytest.mark.parametrize("solution", ["```python\nprint(1)", "a\n```output\n1\n", "```python"])
def test_an_open_fence_is_a_fault(solution):
    with pytest.raises(ExampleFault, match="opened and not closed") as caught:
        parse_solution(solution)
    assert caught.value.cause == "open_fence"


@pytest.mark.parametrize(
    ("cause", "question", "blocks"),
    [
        ("missing_question", " \n", (text("a"),)),
        ("missing_answer", "q", ()),
        ("missing_answer", "q", (text(" \n"), program(""))),
        ("output_without_program", "q", (text("a"), output("1"))),
        ("output_without_program", "q", (program("a"), output("1"), output("2"))),
        ("fence_in_program", "q", (program("a = '''\n```output\n'''"),)),
    ],
)
def test_an_example_that_cannot_be_rendered_is_a_fault(template, cause, question, blocks):
    with pytest.raises(ExampleFault) as caught:
        template.render(make_example(*blocks, question=question))
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("What is $\\frac{1}{2}$ of 3?", "en"),
        ("计算$$\\frac{1}{2}+\\overline{ABC}\\textasciitilde$$．\nA. $$\\textgreater$$", "zh"),
        ("Tom（小明） has three apples and buys two more.", "en"),
        ("3 + 4 = ?", "en"),
        ("求 x", "zh"),
    ],
)
def test_the_language_is_seen_past_the_latex(question, language):
    assert detect_language(question) == language


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(DsmError, match="did you mean 'deepseekmath'"):
        load_template("deepseek-math")


CUSTOM = """
name: plain
prompt: "Q: {question}\\nA:"
program: "<code>{code}</code>"
output: "<out>{text}</out>"
"""


def test_a_template_is_a_yaml_file_and_its_fingerprint_its_content(tmp_path: Path):
    path, same, other = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    path.write_text(CUSTOM)
    same.write_text("# a comment changes nothing\n" + CUSTOM)
    other.write_text(CUSTOM.replace("Q:", "P:"))
    template = load_template(path)
    assert template.prompt("1+1?", "en", "cot") == "Q: 1+1?\nA:"
    assert template.render(make_example(text("2")))[1] == Segment(text="2", supervised=True)
    assert load_template(same).fingerprint == template.fingerprint
    assert load_template(other).fingerprint != template.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{question}", "", r"prompt: must hold \{question\} exactly once"),
        ("{code}", "{code}{code}", r"program: must hold \{code\} exactly once"),
        ("output:", "outputs:", "unknown key 'outputs'"),
        ("Q: ", "{suffix}{suffix}", "at most once"),
    ],
)
def test_a_bad_template_file_is_one_clear_line(tmp_path: Path, old, new, message):
    path = tmp_path / "bad.yaml"
    path.write_text(CUSTOM.replace(old, new))
    with pytest.raises(DsmError, match=message) as caught:
        load_template(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
