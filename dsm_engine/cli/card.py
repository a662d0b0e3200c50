"""Writes the card of a tokenized dataset: PREFIX.card.md, for the Hugging Face hub, and
PREFIX.card.html, one page with plots.

dsm card data/train
dsm card data/train --capacity 2048 --samples 6
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")
    parser.add_argument("--capacity", type=int, default=4096, help="tokens a pack (%(default)s)")
    parser.add_argument("--samples", type=int, default=3, help="documents shown (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="default: the one it was made with")


def run(arguments: argparse.Namespace) -> None:
    """Writes both files and prints where they are."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.card import write_card

    paths = write_card(
        arguments.prefix,
        capacity=arguments.capacity,
        num_samples=arguments.samples,
        tokenizer_path=arguments.tokenizer,
    )
    for path in paths:
        console().print(f"wrote {path}", markup=False)
