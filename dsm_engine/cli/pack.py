"""Builds the pack index of a tokenized dataset and says how full the packs are.

dsm pack data/train --capacity 4096
dsm pack data/train --capacity 4096 --strategy best_fit --output data/train.packs
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dsm_engine.data.pack_index import PackIndex, PackLedger, PackStatistics, PackStrategy

_BAR_WIDTH = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from dsm_engine.data.pack_index import OVERLONG_POLICIES, STRATEGIES, PackCost

    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens a pack (%(default)s)")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="random",
        help="random: the paper's random concatenation; concat_split: the same stream, documents "
        "cut; best_fit: fewest packs; first_fit_shuffle: between them; balanced: packs of equal "
        "cost (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="(%(default)s)")
    parser.add_argument(
        "--alignment",
        type=int,
        default=1,
        help="slots of a document are a multiple of it, such as 2 * CP (%(default)s)",
    )
    parser.add_argument(
        "--overlong",
        choices=OVERLONG_POLICIES,
        default="error",
        help="what becomes of documents longer than a pack (%(default)s)",
    )
    parser.add_argument(
        "--cost",
        type=int,
        nargs=2,
        metavar=("TOKEN", "SQUARE"),
        default=[PackCost().token, PackCost().square],
        help="of balanced: a pack costs TOKEN * slots + SQUARE * the sum of its documents' squared "
        "slots (the 7B model's FLOPs: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="pack index file (PREFIX.STRATEGY-CAPACITY.packs)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the index asked for, and prints what every strategy makes of the dataset."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.pack_file import refuse_other_files, save_pack_index
    from dsm_engine.data.pack_index import STRATEGIES, PackCost, build_pack_index
    from dsm_engine.data.tokenized_dataset import TokenizedDataset
    from dsm_engine.errors import DsmError

    if arguments.capacity < 1:
        raise DsmError(f"--capacity is the tokens of a pack, 1 or more, found {arguments.capacity}")
    dataset = TokenizedDataset(arguments.prefix)
    if dataset.num_documents == 0:
        raise DsmError(f"{arguments.prefix}: holds no documents to pack")
    name = f"{arguments.prefix.name}.{arguments.strategy}-{arguments.capacity}.packs"
    output = arguments.output or arguments.prefix.with_name(name)
    refuse_other_files(output)

    def build(strategy: "PackStrategy") -> "PackIndex":
        return build_pack_index(
            dataset.lengths,
            capacity=arguments.capacity,
            strategy=strategy,
            seed=arguments.seed,
            alignment=arguments.alignment,
            overlong=arguments.overlong,
            cost=PackCost(token=arguments.cost[0], square=arguments.cost[1]),
            threads=arguments.threads,
        )

    def describe(strategy: "PackStrategy", packs: "PackIndex", started: float) -> str:
        milliseconds = 1000 * (time.perf_counter() - started)
        return _line(strategy, packs.statistics(dataset.lengths), milliseconds)

    started = time.perf_counter()
    try:
        chosen = build(arguments.strategy)
    except DsmError as error:
        raise DsmError(f"{arguments.prefix}: {error}") from error
    if chosen.num_packs == 0:
        raise DsmError(f"{arguments.prefix}: no document is short enough for a pack")
    lines = [describe(arguments.strategy, chosen, started)]
    for strategy in STRATEGIES:
        if strategy != arguments.strategy:
            started = time.perf_counter()
            try:
                lines.append(describe(strategy, build(strategy), started))
            except DsmError as error:  # what one strategy cannot, the one asked for could
                lines.append(f"{strategy:>17}: {error}")

    show = console()
    num_tokens = int(dataset.lengths.sum(dtype="int64"))
    before = num_tokens / (dataset.num_documents * arguments.capacity)
    show.print(
        f"{dataset.num_documents:,} documents, {num_tokens:,} tokens, capacity "
        f"{arguments.capacity:,}; fill before packing (one document a row) {before:.2%}"
    )
    for line in lines:
        show.print(line)
    _print_ledger(show, chosen.ledger)
    show.print(f"packs by fill, {arguments.strategy}:")
    histogram = chosen.statistics(dataset.lengths).fill_histogram
    for i, count in enumerate(histogram):
        bar = "#" * round(_BAR_WIDTH * count / max(histogram))
        show.print(f"  {i * 10:3d}-{i * 10 + 10:3d}% {count:8,d} {bar}")
    save_pack_index(chosen, output)
    show.print(f"wrote {output}", markup=False)


def _line(strategy: str, statistics: "PackStatistics", milliseconds: float) -> str:
    return (
        f"{strategy:>17}: {statistics.num_packs:,} packs, fill after {statistics.fill:.2%}, "
        f"padding {statistics.tail_padding:,} at the ends + {statistics.alignment_padding:,} for "
        f"alignment, documents a pack {statistics.documents_per_pack_mean:.1f} (at most "
        f"{statistics.documents_per_pack_max}), squared slots {statistics.sum_squares:.3g} (a pack "
        f"at most {statistics.max_squares:.3g}), {milliseconds:.1f} ms"
    )


def _print_ledger(show: "Console", ledger: "PackLedger") -> None:
    if ledger.dropped_documents or ledger.truncated_documents:
        show.print(
            f"too long for a pack: {ledger.dropped_documents:,} documents dropped with "
            f"{ledger.dropped_tokens:,} tokens, {ledger.truncated_documents:,} cut with "
            f"{ledger.truncated_tokens:,} tokens lost"
        )
