"""Programs in answers: where they end, what is run of them, and how a result is shown."""

import re
from collections.abc import Sequence

from dsm_engine.sandbox import ProgramResult

_PROGRAM = re.compile(r"```python[^\n]*\n(.*?)^```(?!\w)", re.MULTILINE | re.DOTALL)
_MAX_SHOWN = 100  # characters of output a model is shown
_SHOWN_END = 50


def end_of_first_program(text: str) -> int | None:
    """Where the fence that closes the first program ends; None where none is closed."""
    match = _PROGRAM.search(text)
    return match.end() if match else None


def programs_in(text: str) -> list[str]:
    """The closed programs of a text, without their fences."""
    return [body.removesuffix("\n") for body in _PROGRAM.findall(text)]


def program_to_run(programs: Sequence[str]) -> str:
    """The last program behind the earlier ones, whose unindented prints are removed."""
    *earlier, last = programs
    lines = [
        line for program in earlier for line in program.split("\n") if not line.startswith("print(")
    ]
    return "\n".join([*lines, last])


def shown_result(result: ProgramResult) -> str:
    """What the model reads back: the output, shortened, or the error."""
    if result.error:
        return f"Runtime errors: {result.error}"
    output = result.stdout.strip()
    if len(output) > _MAX_SHOWN:
        output = f"{output[:_SHOWN_END]}...{output[-_SHOWN_END:]}"
    return output


def final_output(result: ProgramResult) -> str:
    """The last line a program printed: what it offers as an answer; "" where it failed."""
    lines = result.stdout.strip().splitlines()
    return lines[-1].strip() if lines and not result.error else ""
