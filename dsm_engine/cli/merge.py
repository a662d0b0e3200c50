"""Joins the parts that `dsm preprocess --shard I/N` made to one dataset, the same one run makes.

dsm merge data/train

Needs PREFIX.parts with the parts of all shards; the sources need not be here.
"""

import argparse
import time
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="the recipe's output")
    parser.add_argument("--no-card", action="store_true", help="write no dataset card")


def run(arguments: argparse.Namespace) -> None:
    """Merges and prints what was kept and what was not, by cause."""
    from dsm_engine.cli.preprocess_report import print_card, print_report
    from dsm_engine.data.preprocess import merge_shards
    from dsm_engine.data.tokenized_dataset import path_of

    replaced = path_of(arguments.prefix, ".manifest.json").exists()
    started = time.perf_counter()
    report = merge_shards(arguments.prefix)
    print_report(report, time.perf_counter() - started, replaced=replaced)
    if not arguments.no_card:
        print_card(report.output)
