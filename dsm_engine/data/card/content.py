"""What a card is made of, before it is Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dsm_engine.data.inspection import DocumentView

Cell = str | int
"""Whole numbers are shown with thousands separators, at the right of their column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under a heading; `shares` draws a bar behind each row, 1.0 as wide as can be."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    shares: list[float] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts in bins of equal width; the last bin may be open."""

    title: str
    unit: str
    labels: list[str]
    """Of each bin."""
    counts: list[int]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text as it stands."""

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One document, supervised tokens marked."""

    view: DocumentView


@dataclass(frozen=True, kw_only=True, slots=True)
class CardSection:
    """A part of the card with a heading."""

    title: str
    parts: list[Table | Histogram | Code | Sample]
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A dataset card."""

    name: str
    facts: list[tuple[str, Cell]]
    """The figures at the top."""
    sections: list[CardSection]
    front_matter: dict[str, Any] = field(default_factory=dict)
    """What the Hugging Face hub reads at the head of the Markdown."""


def shown(cell: Cell) -> str:
    """A cell as text."""
    return f"{cell:,}" if isinstance(cell, int) else cell


def numeric_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Which columns hold numbers, whole or written out, and nothing else but empty cells."""
    return [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]


def _is_numeric(cells: Sequence[Cell]) -> bool:
    filled = [cell for cell in cells if cell != ""]
    return bool(filled) and all(
        isinstance(cell, int) or not cell.strip("0123456789.,%") for cell in filled
    )
