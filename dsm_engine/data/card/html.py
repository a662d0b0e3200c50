"""A card as one HTML page: styles and drawings inside, no scripts, nothing from outside."""

from collections.abc import Iterator
from html import escape

from dsm_engine.data.card.content import (
    Card,
    CardSection,
    Code,
    Histogram,
    Sample,
    Table,
    numeric_columns,
    shown,
)

_PLOT_WIDTH, _PLOT_HEIGHT = 720, 200
_MARGIN_LEFT, _MARGIN_BOTTOM, _MARGIN_TOP = 56, 34, 10
_MAX_TICKS = 8

_STYLE = """
:root { color-scheme: light dark; --text: #1f2430; --dim: #667085; --line: #e3e7ee;
  --paper: #ffffff; --raised: #f6f8fb; --bar: #4c78c9; --learn: #0b7a4b; --learn-paper: #ddf5e8;
  --control: #a3359c; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7ee; --dim: #98a2b3; --line: #2c3442;
  --paper: #12161d; --raised: #1a202a; --bar: #6f9bec; --learn: #7fe0b1; --learn-paper: #12382a;
  --control: #e590de; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { margin: 0 0 1.25rem; font-size: 2rem; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; padding-bottom: .35rem; border-bottom: 1px solid var(--line);
  font-size: 1.35rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; color: var(--dim); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem;
  margin: 0; }
.facts div { padding: .75rem 1rem; border-radius: .6rem; background: var(--raised); }
.facts dt { color: var(--dim); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { color: var(--dim); font-weight: 500; text-align: left; white-space: nowrap; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 8rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.b { width: 30%; min-width: 8rem; vertical-align: middle; }
.b i { display: block; height: .7rem; border-radius: .2rem; background: var(--bar); }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); }
svg line { stroke: var(--line); }
svg text { fill: var(--dim); font-size: 11px; }
pre { margin: .5rem 0; padding: 1rem; border-radius: .6rem; background: var(--raised);
  font: .85rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono",
  "Noto Sans Mono CJK SC", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { padding: .1em 0; border-radius: .15em; background: var(--learn-paper); color: var(--learn); }
b { color: var(--control); font-weight: 500; }
"""


def render_html(card: Card) -> str:
    """The whole page."""
    name = escape(card.name)
    facts = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(shown(value))}</dd></div>"
        for title, value in card.facts
    )
    sections = "\n".join(_section(section) for section in card.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}</h1>
<dl class="facts">{facts}</dl>
{sections}
</body>
</html>
"""


def _section(section: CardSection) -> str:
    parts = "\n".join(_part(part) for part in section.parts)
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}{parts}\n</section>"


def _part(part: Table | Histogram | Code | Sample) -> str:
    if isinstance(part, Sample):
        return _sample(part)
    title = f"<h3>{escape(part.title)}</h3>\n" if part.title else ""
    if isinstance(part, Code):
        return f"{title}<pre>{escape(part.text.rstrip())}</pre>"
    drawn = _table(part) if isinstance(part, Table) else _histogram(part)
    note = f"\n<p>{escape(part.note)}</p>" if part.note else ""
    return f"{title}{drawn}{note}"


def _table(table: Table) -> str:
    classes = [
        ' class="n"' if right else "" for right in numeric_columns(table.columns, table.rows)
    ]
    head = "".join(
        f"<th{css}>{escape(column)}</th>"
        for css, column in zip(classes, table.columns, strict=True)
    )
    head = f"<tr>{head}{'<th></th>' if table.shares else ''}</tr>\n" if any(table.columns) else ""
    lines = []
    for row_idx, row in enumerate(table.rows):
        cells = "".join(
            f"<td{css}>{escape(shown(cell))}</td>" for css, cell in zip(classes, row, strict=True)
        )
        if table.shares:
            width = f"{100 * table.shares[row_idx]:.2f}%"
            cells += f'<td class="b"><i style="width:{width}"></i></td>'
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>\n{head}' + "\n".join(lines) + "\n</table></div>"


def _histogram(histogram: Histogram) -> str:
    """Bars over their bins, the counts at the left, every few bins a label below."""
    most, num_bins = max(histogram.counts), len(histogram.counts)
    base = _PLOT_HEIGHT - _MARGIN_BOTTOM
    step = (_PLOT_WIDTH - _MARGIN_LEFT) / num_bins
    labelled = -(-num_bins // _MAX_TICKS)
    drawn = list(_grid(most, base))
    for i, (label, count) in enumerate(zip(histogram.labels, histogram.counts, strict=True)):
        height = (base - _MARGIN_TOP) * count / most
        left = _MARGIN_LEFT + i * step
        drawn.append(
            f'<rect x="{left + 1:.1f}" y="{base - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}"><title>{escape(label)}: {count:,}</title></rect>'
        )
        if i % labelled == 0:
            drawn.append(_label(left, base + 16, escape(label.split()[0]), "middle"))
    return (
        f'<svg viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}" role="img" '
        f'aria-label="{escape(histogram.title)}">\n' + "\n".join(drawn) + "\n</svg>"
    )


def _grid(most: int, base: int) -> Iterator[str]:
    for part in range(3):
        y = base - (base - _MARGIN_TOP) * part / 2
        yield f'<line x1="{_MARGIN_LEFT}" x2="{_PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _label(_MARGIN_LEFT - 6, y + 4, f"{most * part / 2:,.0f}", "end")


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _sample(sample: Sample) -> str:
    view = sample.view
    attributes = view.attributes
    names = (attributes.source, attributes.language, attributes.format, attributes.topic)
    facts = f"{view.num_supervised:,} of {view.num_tokens:,} tokens supervised"
    text = ""
    for run in view.runs:
        shown_text = f"<b>{escape(run.text)}</b>" if run.control else escape(run.text)
        text += f"<mark>{shown_text}</mark>" if run.supervised else shown_text
    return (
        f"<h3>{escape(attributes.id)}</h3>\n"
        f"<p>{escape(', '.join(filter(None, names)))}; {facts}</p>\n<pre>{text}</pre>"
    )
