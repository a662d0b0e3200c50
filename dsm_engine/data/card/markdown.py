"""A card as Markdown, with the front matter the Hugging Face hub reads."""

import re
from collections.abc import Iterable, Sequence

import yaml

from dsm_engine.data.card.content import (
    Card,
    CardSection,
    Cell,
    Code,
    Histogram,
    Sample,
    Table,
    numeric_columns,
    shown,
)

_BAR_CHARACTERS = 20
_MARKS = ("⟦", "⟧")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_BACKTICKS = re.compile("`+")


def render_markdown(card: Card) -> str:
    """The whole file."""
    front_matter = yaml.safe_dump(card.front_matter, sort_keys=False, allow_unicode=True)
    facts = [f"- {name}: **{_escaped(shown(value))}**" for name, value in card.facts]
    blocks = [f"---\n{front_matter}---", f"# {_escaped(card.name)}", "\n".join(facts)]
    for section in card.sections:
        blocks += _section(section)
    return "\n\n".join(blocks) + "\n"


def _section(section: CardSection) -> list[str]:
    blocks = [f"## {_escaped(section.title)}"]
    if section.text:
        blocks.append(section.text)
    if any(isinstance(part, Sample) for part in section.parts):
        blocks.append(f"Supervised text stands in {_MARKS[0]} {_MARKS[1]}.")
    for part in section.parts:
        blocks += _part(part)
    return blocks


def _part(part: Table | Histogram | Code | Sample) -> list[str]:
    if isinstance(part, Sample):
        attributes = part.view.attributes
        facts = f"{part.view.num_supervised:,} of {part.view.num_tokens:,} tokens supervised"
        names = filter(None, (attributes.source, attributes.language, attributes.format))
        title = f"{attributes.id} ({', '.join(names)}; {facts})"
        return [f"### {_escaped(title)}", _fenced(_marked(part), "text")]
    blocks = [f"### {_escaped(part.title)}"] if part.title else []
    if isinstance(part, Code):
        return [*blocks, _fenced(part.text, part.language)]
    if isinstance(part, Table):
        bars = [""] * len(part.rows) if part.shares is None else map(_bar, part.shares)
        rows = [(*row, bar) for row, bar in zip(part.rows, bars, strict=True)]
        has_bars = part.shares is not None
        columns = (*part.columns, "") if has_bars else part.columns
        blocks.append(_table(columns, rows if has_bars else part.rows))
    else:
        most = max(part.counts)
        rows = [
            (label, count, _bar(count / most))
            for label, count in zip(part.labels, part.counts, strict=True)
        ]
        blocks.append(_table(("tokens", part.unit, ""), rows))
    return [*blocks, part.note] if part.note else blocks


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    numeric = numeric_columns(columns, rows)
    lines = [
        _row(columns),
        _row(["---:" if right else "---" for right in numeric], escape=False),
        *(_row([shown(cell) for cell in row]) for row in rows),
    ]
    return "\n".join(lines)


def _row(cells: Iterable[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(_escaped(cell) if escape else cell for cell in cells) + " |"


def _bar(share: float) -> str:
    return "█" * round(_BAR_CHARACTERS * share)


def _marked(sample: Sample) -> str:
    text, supervised = "", False
    for run in sample.view.runs:
        if run.supervised != supervised:
            text += _MARKS[0] if run.supervised else _MARKS[1]
        text += run.text
        supervised = run.supervised
    return text + _MARKS[1] if supervised else text


def _fenced(text: str, language: str) -> str:
    """Behind a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _escaped(text: str) -> str:
    """One line that is shown as it is."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)
