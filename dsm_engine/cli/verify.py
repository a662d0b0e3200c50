"""Reads every byte of a tokenized dataset: the checksums of its manifest, then its structure.

Of Megatron's .bin and .idx alone, which have no checksums, the structure is checked.

dsm verify data/train
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")


def run(arguments: argparse.Namespace) -> None:
    """Ends with exit code 2 and the place of the first damage, if any."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.tokenized_dataset import TokenizedDataset, names_files
    from dsm_engine.data.verification import is_bare, verify_bare

    prefix = arguments.prefix
    if names_files(prefix) and is_bare(prefix):
        bare = verify_bare(prefix)
        line = (
            f"{prefix}: the structure is sound; {bare.num_documents:,} documents in "
            f"{bare.num_sequences:,} sequences of {bare.dtype.name}; there is no manifest and so "
            "no checksum: changed tokens are not found"
        )
    else:
        dataset = TokenizedDataset(prefix)
        dataset.verify()
        line = (
            f"{prefix}: whole; {dataset.num_documents:,} documents, "
            f"{dataset.num_tokens:,} tokens, {dataset.num_supervised:,} supervised"
        )
    console().print(line, markup=False)
