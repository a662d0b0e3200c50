"""What `dsm verify --isolation` shows."""

from rich import box
from rich.table import Table

from dsm_engine.cli.terminal import console
from dsm_engine.training.isolation.numbers import KINDS
from dsm_engine.training.isolation.report import IsolationReport


def print_report(report: IsolationReport) -> None:
    """A table for each half, and a line with its result."""
    show = console()
    names = ", ".join(dict.fromkeys(report.attention.values()))
    show.print(f"attention by {names}, in torch's deterministic mode")
    show.print(_isolation_table(report))
    how = "bit for bit" if report.bound == 0.0 else f"to a bound of {report.bound:g}"
    isolated = f"holds {how}" if report.is_isolated else "FAILS"
    show.print(f"isolation: {isolated}; other tokens in one document, numbers of all others")
    show.print()
    show.print(_unpacked_table(report))
    equal = "holds within rounding" if report.equals_unpacked else "FAILS"
    show.print(f"packed equals unpacked: {equal}; each document alone, gradients summed")
    if not report.gradients:
        show.print("gradients were not compared: forward passes only")


def _isolation_table(report: IsolationReport) -> Table:
    table = _table("pack", "precision", "changed", "numbers", ">compared", ">moved")
    for pack in report.packs:
        for kind in KINDS:
            if pack.num_compared[kind]:
                table.add_row(
                    str(pack.pack_idx),
                    pack.precision,
                    f"{len(pack.changed)} of {pack.num_documents}",
                    kind,
                    f"{pack.num_compared[kind]:,}",
                    f"{pack.num_moved(kind):,}",
                )
        table.add_section()
    return table


def _unpacked_table(report: IsolationReport) -> Table:
    table = _table("precision", "numbers", ">apart", ">bound", "where they are furthest")
    for precision, kind, pack_idx, agreement in report.furthest():
        table.add_row(
            precision,
            kind,
            f"{agreement.worst:.1e}",
            f"{agreement.bound:.1e}",
            f"pack {pack_idx}, {agreement.where}",
        )
    return table


def _table(*names: str) -> Table:
    """A table with these columns, numbers (>) to the right; the last may be broken."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name != names[-1],
            overflow="fold",
        )
    return table
