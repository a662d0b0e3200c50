"""Turns sources into a tokenized dataset with supervised spans.

dsm preprocess configs/data/gsm8k.yaml output=data/gsm8k
dsm preprocess configs/data/gsm8k.yaml on_error=quarantine overlong=drop
dsm preprocess configs/data/gsm8k.yaml --dry-run
dsm preprocess configs/data/gsm8k.yaml --shard 3/8     (one of eight jobs; then: dsm merge PREFIX)

A run that was interrupted or killed goes on from its PREFIX.parts when it is started again.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dsm_engine.cli.recipe_arguments import add_recipe_arguments

if TYPE_CHECKING:
    from dsm_engine.data.recipe import PreprocessRecipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; default: as many as processors"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="make only this share of the work, I from 0 to N - 1, for dsm merge to join",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="count what each source would give, without tokens or programs; writes nothing",
    )
    parser.add_argument("--no-card", action="store_true", help="write no dataset card")
    parser.add_argument(
        "--unsafe-exec",
        action="store_true",
        help="verification runs programs without a sandbox, with all your rights",
    )


def run(arguments: argparse.Namespace) -> None:
    """Preprocesses and prints what was kept and what was not, by cause."""
    from dsm_engine.data.recipe import PreprocessRecipe
    from dsm_engine.errors import DsmError
    from dsm_engine.recipes import load_recipe
    from dsm_engine.sandbox import UNSAFE_WARNING

    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, PreprocessRecipe)
    if arguments.dry_run and arguments.shard:
        raise DsmError("--dry-run counts all sources: leave out --shard")
    if arguments.unsafe_exec:
        print(UNSAFE_WARNING, file=sys.stderr)  # noqa: T201
    if arguments.dry_run:
        _count(recipe, arguments)
    elif arguments.shard:
        _make_shard(recipe, arguments)
    else:
        _make_dataset(recipe, arguments)


def _make_dataset(recipe: "PreprocessRecipe", arguments: argparse.Namespace) -> None:
    from dsm_engine.cli.preprocess_report import print_card, print_report
    from dsm_engine.data.preprocess import preprocess

    replaced = recipe.output.with_name(recipe.output.name + ".manifest.json").exists()
    with _Clock() as clock:
        report = preprocess(
            recipe,
            workers=arguments.workers,
            unsafe_exec=arguments.unsafe_exec,
            progress=clock.progress,
        )
        seconds = clock.seconds
    print_report(report, seconds, replaced=replaced)
    if not arguments.no_card:
        print_card(report.output)


def _make_shard(recipe: "PreprocessRecipe", arguments: argparse.Namespace) -> None:
    from dsm_engine.cli.preprocess_report import print_shard
    from dsm_engine.data.preparation.parts_folder import Shard
    from dsm_engine.data.preprocess import preprocess_shard

    shard = Shard.parse(arguments.shard)
    with _Clock() as clock:
        report = preprocess_shard(
            recipe,
            shard,
            workers=arguments.workers,
            unsafe_exec=arguments.unsafe_exec,
            progress=clock.progress,
        )
    print_shard(report, shard, recipe.output, clock.seconds)


def _count(recipe: "PreprocessRecipe", arguments: argparse.Namespace) -> None:
    from dsm_engine.cli.preprocess_report import print_dry_run
    from dsm_engine.data.preprocess import count_examples

    with _Clock() as clock:
        counts = count_examples(recipe, workers=arguments.workers, progress=clock.progress)
    print_dry_run(counts, clock.seconds)


class _Clock:
    """A progress line with a rate, and the seconds since it began."""

    def __init__(self) -> None:
        from dsm_engine.cli.terminal import ProgressLine

        self._line = ProgressLine("preprocess (MB)")
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def progress(self, done: int, total: int) -> None:
        rate = done / 1e6 / max(self.seconds, 1e-9)
        self._line.update(done / 1e6, total / 1e6, f"{rate:.1f} MB/s")

    def __enter__(self) -> "_Clock":
        self._line.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._line.__exit__(*error)
