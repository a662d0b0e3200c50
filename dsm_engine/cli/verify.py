"""Reads every byte of a tokenized dataset and compares the checksums with its manifest's.

dsm verify data/train
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")


def run(arguments: argparse.Namespace) -> None:
    """Ends with exit code 2 and the name of the first damaged file, if any."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.tokenized_dataset import TokenizedDataset

    dataset = TokenizedDataset(arguments.prefix)
    dataset.verify()
    console().print(
        f"{arguments.prefix}: whole; {dataset.num_documents:,} documents, "
        f"{dataset.num_tokens:,} tokens, {dataset.num_supervised:,} supervised",
        markup=False,
    )
