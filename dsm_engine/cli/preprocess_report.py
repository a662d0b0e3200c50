"""Prints what preprocessing did."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsm_engine.cli.terminal import console

if TYPE_CHECKING:
    from dsm_engine.data.ledger import Ledger
    from dsm_engine.data.preparation.mixture import SourceShare
    from dsm_engine.data.preparation.parts_folder import Shard
    from dsm_engine.data.preprocess import ExampleCounts, PreprocessReport, ShardReport


def print_report(report: "PreprocessReport", seconds: float, *, replaced: bool) -> None:
    """The ledger, the mixture where there is one, the contamination table, phases, files."""
    _print_ledger(report.ledger)
    _print_shares(report.shares)
    for row in report.contamination:
        _print(
            f"contamination: {row['benchmark']} in {row['source']}: {row['removed']:,} examples"
            f" removed, {row['reported']:,} kept and reported, {row['benchmark_items']:,} items"
        )
    mean = report.num_tokens / report.num_documents
    _print(
        f"{report.num_documents:,} documents, {report.num_tokens:,} tokens (mean {mean:.1f}, "
        f"longest {report.max_document_tokens:,}), {report.num_supervised_tokens:,} supervised, "
        f"in {seconds:.1f} s -> {report.output}"
    )
    if report.encoder:
        _print(f"encoder: {report.encoder}")
    _print_phases(report.phase_s)
    if report.num_resumed:
        _print(f"{report.num_resumed:,} of {report.num_blocks:,} blocks were done before")
    if report.num_discarded:
        _print(f"{report.num_discarded:,} parts of earlier runs were of something else: removed")
    if replaced:
        _print(f"replaced the dataset that stood at {report.output}")
    if report.quarantine is not None:
        _print(f"{report.num_quarantined:,} rows in {report.quarantine}")


def print_card(output: Path) -> None:
    """Writes the dataset's card and says where it is, or why there is none; the dataset stands."""
    from dsm_engine.data.card import write_card
    from dsm_engine.errors import DsmError

    started = time.perf_counter()
    try:
        paths = write_card(output)
    except DsmError as error:
        _print(f"no card was written: {error}; dsm card {output} --tokenizer FILE makes one")
        return
    _print(f"card: {' and '.join(map(str, paths))}, in {time.perf_counter() - started:.1f} s")


def print_shard(report: "ShardReport", shard: "Shard", output: Path, seconds: float) -> None:
    """What a shard's run made, and what to do next."""
    resumed = f" ({report.num_resumed:,} were done before)" if report.num_resumed else ""
    _print(
        f"shard {shard.index}/{shard.count}: {report.num_blocks:,} blocks{resumed},"
        f" {report.num_rows:,} rows in {seconds:.1f} s -> {report.folder}"
    )
    _print_phases(report.phase_s)
    _print(f"when all {shard.count} have finished: dsm merge {output}")


def print_dry_run(counts: "ExampleCounts", seconds: float) -> None:
    """What the recipe would give."""
    _print_ledger(counts.ledger)
    for name, values in counts.columns.items():
        _print(f"{name}: " + ", ".join(f"{count:,} {value or '-'}" for value, count in values))
    _print_shares(counts.shares)
    documents = sum(share.documents for _, share in counts.shares)
    _print(f"{documents:,} documents, in {seconds:.1f} s; nothing was written (--dry-run)")
    _print("not counted: " + "; ".join(counts.left_out))


def _print_ledger(ledger: "Ledger") -> None:
    for name, counts in ledger.sources.items():
        causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.dropped.items())
        notes = {
            "truncated": counts.truncated,
            "unknown tokens": counts.unknown_tokens,
            "repeated": counts.repeated,
            "with benchmark text": counts.contaminated_kept,
        }
        noted = "".join(f", {count:,} {what}" for what, count in notes.items() if count)
        _print(
            f"{name}: {counts.read:,} read = {counts.kept:,} kept + "
            f"{counts.dropped.total():,} dropped{f' ({causes})' if causes else ''}{noted}"
        )


def _print_shares(shares: Sequence[tuple[str, "SourceShare"]]) -> None:
    """Where a mixture changes what the sources give."""
    if all(share.documents == share.available == share.wanted for _, share in shares):
        return
    for name, share in shares:
        short = f", {share.wanted:,} wanted" if share.wanted > share.documents else ""
        _print(
            f"mixture: {name}: {share.documents:,} documents of {share.chosen:,} examples,"
            f" {share.available:,} available{short}"
        )


def _print_phases(phase_s: dict[str, float]) -> None:
    if phase_s:
        each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phase_s.items())
        _print(f"seconds by phase, summed over processes: {each}")


def _print(text: str) -> None:
    console().print(text, markup=False)
