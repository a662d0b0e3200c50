"""The tool loop: what is run, what the model reads back, when it ends."""

from collections.abc import Callable, Sequence

import pytest

from dsm_engine.data.segments import Segment
from dsm_engine.data.templates import load_template
from dsm_engine.evaluation.backend import Generation, GenerationParams, Prompt
from dsm_engine.evaluation.tool_loop import Answer, answer_with_tools
from dsm_engine.programs import (
    end_of_first_program,
    final_output,
    program_to_run,
    programs_in,
    shown_result,
)
from dsm_engine.sandbox import ProgramResult

TEMPLATE = load_template("deepseekmath")
CALL = " ```python\nprint(6 * 7)\n```"


class ScriptedBackend:
    """Gives each prompt's next line of a script, ended by the conditions a model obeys."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = script
        self.seen: list[list[tuple[str, ...]]] = []
        self.params: list[GenerationParams] = []

    def room(self, prompts: Sequence[Prompt]) -> list[int]:
        return [1000] * len(prompts)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        self.seen.append([tuple(segment.text for segment in prompt) for prompt in prompts])
        self.params.append(params)
        if progress is not None:
            progress(len(prompts))
        return [self._next(prompt, params) for prompt in prompts]

    def _next(self, prompt: Prompt, params: GenerationParams) -> Generation:
        whole = self.script[prompt[0].text].pop(0)
        text = whole[: params.max_new_tokens]
        ends = [text.index(stop) for stop in params.stop if stop in text]
        end = end_of_first_program(text) if params.stop_after_program else None
        ends += [] if end is None else [end]
        if ends:
            return Generation(text=text[: min(ends)], finish_reason="stop", num_tokens=2)
        reason = "eos" if text == whole else "length"
        return Generation(text=text, finish_reason=reason, num_tokens=1)


def interpret(programs: Sequence[str]) -> list[ProgramResult]:
    """A stand-in for the sandbox: prints the program's length."""
    return [ProgramResult(stdout=f"{len(p)}\n", error="", timed_out=False) for p in programs]


def answer(backend: ScriptedBackend, **arguments) -> list[Answer]:
    defaults = {"run_programs": interpret, "template": TEMPLATE, "max_new_tokens": 1000}
    prompts = [(Segment(text=name),) for name in backend.script]
    return answer_with_tools(prompts, backend=backend, **{**defaults, **arguments})


def test_a_program_is_run_and_its_output_read_back() -> None:
    backend = ScriptedBackend({"q": [CALL + "\nmore", "The answer is \\boxed{12}."]})
    (result,) = answer(backend)
    output = "\n```output\n12\n```\n"
    assert backend.seen == [[("q",)], [("q", CALL, output)]]
    assert result.text == CALL + output + "The answer is \\boxed{12}."
    assert [run.program for run in result.runs] == ["print(6 * 7)"]
    assert (result.finish_reason, result.num_tokens) == ("eos", 3)


def test_segments_are_cut_where_training_cuts_them() -> None:
    from dsm_engine.data.example import Block, Example

    blocks = (
        Block(kind="program", text="print(6 * 7)"),
        Block(kind="output", text="12"),
        Block(kind="text", text="The answer is \\boxed{12}."),
    )
    example = Example(
        id="x", question="q?", blocks=blocks, answer="12", language="en", format="tir", source="t"
    )
    rendered = tuple(segment.text for segment in TEMPLATE.render(example))
    prompt = TEMPLATE.prompt("q?", "en", "tir")
    for handover, first in (("program_end", CALL), ("output_fence", CALL + "\n```output\n")):
        backend = ScriptedBackend({prompt: [first, rendered[3]]})
        answer(backend, handover=handover)
        assert backend.seen[1] == [rendered[:3]]


def test_only_those_who_called_go_on() -> None:
    backend = ScriptedBackend({"a": ["42"], "b": [CALL, "42"], "c": [" ```python\nopen"]})
    results = answer(backend)
    assert [len(prompts) for prompts in backend.seen] == [3, 1]
    assert [len(result.runs) for result in results] == [0, 1, 0]


def test_the_last_round_ends_with_its_output() -> None:
    backend = ScriptedBackend({"q": [CALL, CALL, "never"]})
    (result,) = answer(backend)
    assert len(backend.seen) == 2 and len(result.runs) == 2
    assert result.finish_reason == "stop" and result.text.endswith("```output\n12\n```\n")


def test_earlier_programs_run_again_without_their_prints() -> None:
    first = "a = 1\nprint(a)\nif a:\n    print(a)"
    backend = ScriptedBackend({"q": [f" ```python\n{first}\n```", " ```python\nprint(a + 1)\n```"]})
    (result,) = answer(backend)
    assert result.runs[1].program == "a = 1\nif a:\n    print(a)\nprint(a + 1)"


def test_output_fence_waits_for_the_models_own_fence() -> None:
    two = " ```python\na = 1\nprint(a)\n```\nand\n```python\nprint(a)\n```\n"
    backend = ScriptedBackend({"q": [two + "```output\n1", "done"], "p": [CALL + "\nend"]})
    results = answer(backend, handover="output_fence")
    assert not backend.params[0].stop_after_program and backend.params[0].stop == ("```output",)
    assert results[0].runs[0].program == "a = 1\nprint(a)"
    assert results[0].text.startswith(two.rstrip() + "\n```output\n")
    assert results[1].runs == () and results[1].finish_reason == "eos"


def test_a_cut_off_answer_is_not_run() -> None:
    (result,) = answer(ScriptedBackend({"q": ["Let me think. " + CALL]}), max_new_tokens=20)
    assert (result.finish_reason, result.runs) == ("length", ())


def test_progress_reaches_the_rounds_of_all_prompts() -> None:
    counts: list[int] = []
    answer(ScriptedBackend({"a": ["1"], "b": [CALL, "2"]}), progress=counts.append)
    assert sum(counts) == 4


def test_no_prompts_give_no_answers() -> None:
    assert answer(ScriptedBackend({})) == []


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (" ```python\nprint(1)\n```", 23),
        ("x\n```python\n```", 15),
        (" ```python\nprint(1)\n", None),
        (" ```python\nprint('```')\n", None),
        (" ```python\nprint(1)\n```output", None),
        ("```\ntext\n```", None),
    ],
)
def test_a_program_ends_with_its_fence(text: str, end: int | None) -> None:
    assert end_of_first_program(text) == end


def test_programs_and_results_are_shown_as_published() -> None:
    assert programs_in(" ```python\na\n```\nx\n```python\nb\n\nc\n```") == ["a", "b\n\nc"]
    assert program_to_run(["print(1)"]) == "print(1)"
    long = ProgramResult(stdout="a" * 50 + "b" + "c" * 50 + "\n", error="", timed_out=False)
    assert shown_result(long) == "a" * 50 + "..." + "c" * 50
    edge = ProgramResult(stdout="a" * 100, error="", timed_out=False)
    assert shown_result(edge) == "a" * 100
    failed = ProgramResult(stdout="1", error="NameError: x", timed_out=False)
    assert shown_result(failed) == "Runtime errors: NameError: x"
    assert final_output(failed) == ""
    two_lines = ProgramResult(stdout="1\n 2 \n\n", error="", timed_out=False)
    assert final_output(two_lines) == "2"
