"""What `dsm verify --gradients` shows."""

from rich import box
from rich.table import Table

from dsm_engine.cli.terminal import console
from dsm_engine.training.gradients.report import GradientsReport, PrecisionResult


def print_report(report: GradientsReport) -> None:
    """For each precision a table of the splits, and what they show."""
    show = console()
    show.print(
        f"{report.num_packs} of the {report.global_batch_size} packs of a global batch, "
        f"{report.num_documents:,} documents, in torch's deterministic mode"
    )
    for result in report.results:
        show.print()
        show.print(
            f"{result.precision}, attention by {result.attention}: "
            f"{result.num_supervised:,} supervised tokens, loss sum "
            f"{result.loss.weighted_total:.9g} over {result.divisor:,}, by the documents one by one"
        )
        show.print(_table(result))
        furthest = max(result.splits, key=lambda split: split.gradient.worst)
        show.print(f"furthest: {furthest.gradient.where}, {furthest.name}")
        bound = furthest.gradient.bound
        same = "FAILS" if result.failure else "holds"
        show.print(
            f"one gradient for every split: {same}; bounds {bound:.1e} for gradients, "
            f"{result.loss_bound:.1e} for the loss sum, 0 for the number of tokens"
        )
        repeated = "FAILS" if result.unrepeated else "holds bit for bit"
        show.print(f"two runs of the {result.splits[0].name}: {repeated}")


def _table(result: PrecisionResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split", no_wrap=True)
    for name in ("packs", "tokens", "loss apart", "gradient apart"):
        table.add_column(name, justify="right", no_wrap=True)
    for split in result.splits:
        table.add_row(
            split.name,
            str(split.num_micro_batches),
            f"{split.width:,}",
            f"{result.loss_apart(split):.1e}",
            f"{split.gradient.worst:.1e}",
        )
    return table
