"""Examples with programs, verified: each program is run, and what it prints is compared.

An example is at fault where a program fails or takes too long, where it prints something other
than the answer records, or where the final answer is not the one that is given. Faults have
ledger keys: `program_failed`, `program_timeout`, `no_output`, `output_mismatch`,
`answer_mismatch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dsm_engine.data.example import Example, ExampleFault
from dsm_engine.data.quality.answer_comparison import (
    among_answers,
    number_in_words,
    same_answer,
)
from dsm_engine.data.quality.output_comparison import (
    records_error,
    records_timeout,
    same_error,
    same_output,
)
from dsm_engine.data.quality.program_cache import ProgramCache
from dsm_engine.grading import boxed_answers, extract_answer
from dsm_engine.programs import (
    CellResult,
    answering_program,
    notebook_program,
    notebook_results,
    program_to_run,
)
from dsm_engine.sandbox import ProgramResult, Sandbox

_CPU_S = 10
_MEMORY_MIB = 512
_CLOCK_S_PER_CPU_S = 6
_MAX_SHOWN = 80
_MAX_ANSWER_CHARACTERS = 1000  # of a printed line: answers are short, and searching long ones slow


class ProgramRunner(Protocol):
    """What runs programs: a Sandbox."""

    @property
    def conditions(self) -> str:
        """All that a result depends on besides the program."""
        ...

    def close(self) -> None: ...

    def run(self, programs: Sequence[str]) -> list[ProgramResult]:
        """What each program did."""
        ...


@dataclass(slots=True)
class VerificationCounts:
    """What a verifier has done so far."""

    examples: int = 0
    """Examples with programs; chains of thought are not counted."""
    programs_run: int = 0
    programs_from_cache: int = 0


class ProgramVerifier:
    """Verifies batches of examples. Call it in the main thread: math-verify sets alarms."""

    def __init__(self, runner: ProgramRunner, cache: ProgramCache | None = None) -> None:
        self.counts = VerificationCounts()
        self._runner = runner
        self._cache = cache

    def verify(self, examples: Sequence[Example]) -> list[ExampleFault | None]:
        """What is wrong with each example; None for those that hold and for chains of thought."""
        programs = [_programs_to_run(example) for example in examples]
        results = self._run([program for group in programs for program in group])
        self.counts.examples += sum(1 for group in programs if group)
        return [
            _fault(example, [results[program] for program in group]) if group else None
            for example, group in zip(examples, programs, strict=True)
        ]

    def close(self) -> None:
        """Ends the runner and closes the cache."""
        self._runner.close()
        if self._cache is not None:
            self._cache.close()

    def _run(self, programs: Sequence[str]) -> dict[str, ProgramResult]:
        distinct = list(dict.fromkeys(programs))
        results = self._cache.get(self._runner.conditions, distinct) if self._cache else {}
        unknown = [program for program in distinct if program not in results]
        self.counts.programs_from_cache += len(results)
        self.counts.programs_run += len(unknown)
        if unknown:
            new = dict(zip(unknown, self._runner.run(unknown), strict=True))
            if self._cache:
                self._cache.put(self._runner.conditions, new)
            results |= new
        return results


def verification_sandbox(
    *,
    cpu_s: int = _CPU_S,
    memory_mib: int = _MEMORY_MIB,
    workers: int = 1,
    unsafe: bool = False,
) -> Sandbox:
    """A sandbox whose limit is the CPU's time: a busy machine rejects no program.

    A program has `cpu_s` of the CPU, and six times as many seconds of the clock to use them in;
    ten times longer while it computes.
    """
    return Sandbox(
        timeout_s=_CLOCK_S_PER_CPU_S * cpu_s,
        cpu_s=cpu_s,
        memory_mib=memory_mib,
        workers=workers,
        unsafe=unsafe,
    )


def _programs_to_run(example: Example) -> list[str]:
    """What is run for an example: a notebook at once, scripts one by one."""
    if example.format == "cot":
        return []
    codes = _codes(example)
    if not codes:
        return []
    if example.notebook:
        return [notebook_program(codes)]
    if example.format == "pot":
        return [answering_program(program_to_run(codes))]
    return [program_to_run(codes[: idx + 1]) for idx in range(len(codes))]


def _codes(example: Example) -> list[str]:
    return [block.text for block in example.blocks if block.kind == "program"]


def _fault(example: Example, results: Sequence[ProgramResult]) -> ExampleFault | None:
    codes = _codes(example)
    timed_out = [result for result in results if result.timed_out]
    if timed_out and not any(map(records_timeout, _recorded(example).values())):
        return ExampleFault("program_timeout", timed_out[0].error)
    if example.notebook:
        ran = notebook_results(codes, results[0])
    else:
        ran = [CellResult(output=result.stdout, error=result.error) for result in results]
    if example.format == "pot":
        return _pot_fault(example, ran[-1])
    return _output_fault(example, ran) or _answer_fault(example, ran[-1])


def _recorded(example: Example) -> dict[int, str]:
    """What is recorded as printed, by the number of the program, from 0."""
    recorded: dict[int, str] = {}
    program_idx = -1
    for block in example.blocks:
        if block.kind == "program":
            program_idx += 1
        elif block.kind == "output":
            recorded[program_idx] = block.text
    return recorded


def _output_fault(example: Example, ran: Sequence[CellResult]) -> ExampleFault | None:
    recorded = _recorded(example)
    for idx, result in enumerate(ran):
        number = f"program {idx + 1}" if len(ran) > 1 else "the program"
        if idx not in recorded:
            if result.error:
                return ExampleFault("program_failed", f"{number} fails: {_short(result.error)}")
        elif fault := _one_output_fault(number, recorded[idx], result):
            return fault
    return None


def _one_output_fault(number: str, recorded: str, result: CellResult) -> ExampleFault | None:
    if not result.error:
        if same_output(recorded, result.output):
            return None
        found = f"prints {_short(result.output)}"
    elif records_error(recorded):
        if same_error(recorded, result.error):
            return None
        found = f"fails with {_short(result.error)}"
    else:
        return ExampleFault(
            "program_failed",
            f"{number} fails: {_short(result.error)}; the answer records {_short(recorded)}",
        )
    return ExampleFault(
        "output_mismatch", f"{number} {found}, and the answer records {_short(recorded)}"
    )


def _pot_fault(example: Example, result: CellResult) -> ExampleFault | None:
    if result.error:
        return ExampleFault("program_failed", f"the program fails: {_short(result.error)}")
    printed = result.output.strip()
    if not printed:
        return ExampleFault("no_output", "the program runs and prints nothing")
    if not example.answer or any(
        same_answer(candidate, example.answer) for candidate in _printed_answers(printed)
    ):
        return None
    return ExampleFault(
        "answer_mismatch",
        f"the program prints {_short(printed)}, and the answer is {_short(example.answer)}",
    )


def _answer_fault(example: Example, last: CellResult) -> ExampleFault | None:
    """Whether the prose ends with the answer that is given.

    Where several parts are asked for, several may be boxed, and the given answer is one of them.
    """
    if not example.answer:
        return None
    found = _final_answers(example, last)
    if any(among_answers(answer, example.answer) for answer in (*found, ", ".join(found))):
        return None
    shown = _short(", ".join(found)) if found != [""] else "missing"
    return ExampleFault(
        "answer_mismatch",
        f"the final answer is {shown}, and the right one is {_short(example.answer)}",
    )


def _final_answers(example: Example, last: CellResult) -> list[str]:
    """The boxed answers of the last prose that has any, or the one that is stated."""
    texts = [block.text for block in example.blocks if block.kind == "text"]
    for text in reversed(texts):
        if boxes := boxed_answers(text):
            return boxes
    prose = "\n".join(texts)
    lines = last.output.strip().splitlines() if not last.error else []
    lines = lines or prose.strip().splitlines() or [""]
    return [extract_answer(prose, program_output=lines[-1])]


def _printed_answers(printed: str) -> list[str]:
    """What may be the answer in an output: its last line, all of it, the last line's number."""
    last = printed.splitlines()[-1].strip()[-_MAX_ANSWER_CHARACTERS:]
    stated = extract_answer(last, program_output=last)
    numbers = [number_in_words(text) for text in (last, stated)]
    return list(dict.fromkeys([last, printed, stated, *filter(None, numbers)]))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}...")
