"""What a rendered text is made of."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of text that is tokenized by itself, in training as in evaluation."""

    text: str
    supervised: bool = False
    control: bool = False
    """The text is the name of one control token, and becomes its id."""
