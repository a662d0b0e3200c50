"""Answers with tools: generate, run the program, append what it printed, generate on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsm_engine.data.segments import Segment
from dsm_engine.data.templates import Template
from dsm_engine.evaluation.backend import (
    Backend,
    FinishReason,
    Generation,
    GenerationParams,
    Prompt,
)
from dsm_engine.programs import program_to_run, programs_in, shown_result
from dsm_engine.sandbox import ProgramResult

Handover = Literal["program_end", "output_fence"]
RunPrograms = Callable[[Sequence[str]], Sequence[ProgramResult]]
_OUTPUT_FENCE = "```output"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramRun:
    """One program as it was run, and what it did."""

    program: str
    result: ProgramResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All that a model and its interpreter wrote behind one prompt."""

    text: str
    finish_reason: FinishReason
    """Of the last generation; `stop` where the rounds were used up."""
    runs: tuple[ProgramRun, ...] = ()
    num_tokens: int = 0


@dataclass(slots=True)
class _Attempt:
    prompt: Prompt
    segments: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    runs: list[ProgramRun] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    num_tokens: int = 0


def answer_with_tools(
    prompts: Sequence[Prompt],
    *,
    backend: Backend,
    run_programs: RunPrograms,
    template: Template,
    max_new_tokens: int,
    rounds: int = 2,
    handover: Handover = "program_end",
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers the prompts in up to `rounds` rounds of generation, each ended by running a program.

    `handover` says what a call is: `program_end`, a program block that has just been closed;
    `output_fence`, as published, the model's opening an output block. `max_new_tokens` counts by
    round. Programs of one round run as one batch. `progress` gets the number of newly finished
    generations, of `rounds` a prompt; an answer that ends early counts for all it leaves out.
    """
    attempts = [_Attempt(prompt) for prompt in prompts]
    params = GenerationParams(
        max_new_tokens=max_new_tokens,
        stop=(_OUTPUT_FENCE,),
        stop_after_program=handover == "program_end",
    )
    active = attempts
    for round_idx in range(rounds):
        if not active:
            break
        continued = [
            (*attempt.prompt, *(Segment(text=text) for text in attempt.segments))
            for attempt in active
        ]
        generations = backend.generate(continued, params, progress=progress)
        calling = [
            attempt
            for attempt, generation in zip(active, generations, strict=True)
            if _take(attempt, generation)
        ]
        codes = [program_to_run(attempt.programs) for attempt in calling]
        for attempt, code, result in zip(calling, codes, run_programs(codes), strict=True):
            attempt.runs.append(ProgramRun(program=code, result=result))
            attempt.segments.append(template.output_block(shown_result(result)))
        if progress is not None:
            progress((len(active) - len(calling)) * (rounds - 1 - round_idx))
        active = calling
    return [
        Answer(
            text="".join(attempt.segments),
            finish_reason=attempt.finish_reason,
            runs=tuple(attempt.runs),
            num_tokens=attempt.num_tokens,
        )
        for attempt in attempts
    ]


def _take(attempt: _Attempt, generation: Generation) -> bool:
    """Adds a generation to an attempt; True where it calls for a program to be run."""
    programs = programs_in(generation.text)
    calls = generation.finish_reason == "stop" and bool(programs)
    # In training an output block follows the closing fence directly.
    attempt.segments.append(generation.text.rstrip("\n") if calls else generation.text)
    attempt.programs += programs
    attempt.finish_reason = generation.finish_reason
    attempt.num_tokens += generation.num_tokens
    return calls
