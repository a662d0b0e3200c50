"""What every generator of answers offers, whatever model or recording is behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dsm_engine.data.segments import Segment

Prompt = tuple[Segment, ...]
"""Segments of one text. Each is tokenized by itself, as in training, so that tokens never join
across the boundary of a prompt, an answer and an interpreter's output."""

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationParams:
    """How to generate: greedily, until one of these conditions holds."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    stop_after_program: bool = False
    """The text ends with the fence that closes the first ```` ```python ```` block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What follows a prompt."""

    text: str
    finish_reason: FinishReason
    """`eos`: the model ended; `stop`: a condition of the parameters; `length`: cut off."""
    num_tokens: int = 0


class Backend(Protocol):
    """Continues prompts."""

    def room(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many new tokens fit behind each prompt; 0 or less where the prompt itself does not
        leave one."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """One generation a prompt, in order; `progress` gets the number of newly finished ones."""
        ...
