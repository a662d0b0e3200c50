"""Builds the pack index of a tokenized dataset and says how full the packs are.

dsm pack data/train --capacity 4096
dsm pack data/train --capacity 4096 --strategy best_fit --output data/train.packs
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from dsm_engine.data.pack_index import PackStatistics

_BAR_WIDTH = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from dsm_engine.data.pack_index import PackStrategy

    strategies = get_args(PackStrategy)
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens a pack (%(default)s)")
    parser.add_argument(
        "--strategy",
        choices=strategies,
        default="random",
        help="random: the paper's random concatenation; best_fit: fewest packs (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="(%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="pack index file (PREFIX.STRATEGY-CAPACITY.packs)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Builds with every strategy, prints them beside each other, writes the one asked for."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.pack_index import PackStrategy, build_pack_index, refuse_other_files
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

    built = {}
    lines: list[str] = []
    for strategy in get_args(PackStrategy):
        started = time.perf_counter()
        try:
            packs = build_pack_index(
                dataset.lengths, capacity=arguments.capacity, strategy=strategy, seed=arguments.seed
            )
        except DsmError as error:
            raise DsmError(f"{arguments.prefix}: {error}") from error
        milliseconds = 1000 * (time.perf_counter() - started)
        built[strategy] = packs
        lines.append(_line(strategy, packs.statistics(dataset.lengths), milliseconds))

    show = console()
    num_tokens = int(dataset.lengths.sum(dtype="int64"))
    before = num_tokens / (dataset.num_documents * arguments.capacity)
    show.print(
        f"{dataset.num_documents:,} documents, {num_tokens:,} tokens, capacity "
        f"{arguments.capacity:,}; fill before packing (one document a row) {before:.2%}"
    )
    for line in lines:
        show.print(line)
    show.print(f"packs by fill, {arguments.strategy}:")
    chosen = built[arguments.strategy]
    histogram = chosen.statistics(dataset.lengths).fill_histogram
    for i, count in enumerate(histogram):
        bar = "#" * round(_BAR_WIDTH * count / max(histogram))
        show.print(f"  {i * 10:3d}-{i * 10 + 10:3d}% {count:8,d} {bar}")
    chosen.save(output)
    show.print(f"wrote {output}", markup=False)


def _line(strategy: str, statistics: "PackStatistics", milliseconds: float) -> str:
    return (
        f"{strategy:>9}: {statistics.num_packs:,} packs, fill after {statistics.fill:.2%}, "
        f"{statistics.padding_tokens:,} padding tokens, documents a pack "
        f"{statistics.documents_per_pack_mean:.1f} (at most "
        f"{statistics.documents_per_pack_max}), {milliseconds:.1f} ms"
    )
