"""Reads every byte of a tokenized dataset: the checksums of its manifest, then its structure.

Of Megatron's .bin and .idx alone, which have no checksums, the structure is checked. A pack index
is checked the same way, and with --dataset that it is of that dataset.

dsm verify data/train
dsm verify data/train.random-4096.packs --dataset data/train
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "prefix", metavar="PREFIX", type=Path, help="tokenized dataset, or a pack-index file"
    )
    parser.add_argument("--dataset", type=Path, help="the dataset a pack index should be of")


def run(arguments: argparse.Namespace) -> None:
    """Ends with exit code 2 and the place of the first damage, if any."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.pack_file import is_pack_index
    from dsm_engine.errors import DsmError

    prefix = arguments.prefix
    if is_pack_index(prefix):
        line = _verify_packs(prefix, arguments.dataset)
    elif arguments.dataset is not None:
        raise DsmError(f"{prefix}: is no pack index, and --dataset goes with one")
    else:
        line = _verify_dataset(prefix)
    console().print(line, markup=False)


def _verify_packs(path: Path, prefix: Path | None) -> str:
    from dsm_engine.data.pack_file import load_pack_index
    from dsm_engine.data.tokenized_dataset import TokenizedDataset
    from dsm_engine.errors import DsmError

    packs = load_pack_index(path)
    line = (
        f"{path}: whole; {packs.num_packs:,} packs of {packs.capacity:,} tokens by "
        f"{packs.strategy}, for {packs.num_documents:,} documents"
    )
    if prefix is None:
        return line
    lengths = TokenizedDataset(prefix).lengths
    if not packs.matches(lengths):
        raise DsmError(f"{path}: was built for other documents than those of {prefix}")
    try:
        packs.check_coverage(lengths)
    except DsmError as error:
        raise DsmError(f"{path}: {error}; build it again") from error
    return f"{line}, those of {prefix}, each once; fill {packs.statistics(lengths).fill:.2%}"


def _verify_dataset(prefix: Path) -> str:
    from dsm_engine.data.tokenized_dataset import TokenizedDataset, names_files
    from dsm_engine.data.verification import is_bare, verify_bare

    if names_files(prefix) and is_bare(prefix):
        bare = verify_bare(prefix)
        return (
            f"{prefix}: the structure is sound; {bare.num_documents:,} documents in "
            f"{bare.num_sequences:,} sequences of {bare.dtype.name}; there is no manifest and so "
            "no checksum: changed tokens are not found"
        )
    dataset = TokenizedDataset(prefix)
    dataset.verify()
    return (
        f"{prefix}: whole; {dataset.num_documents:,} documents, "
        f"{dataset.num_tokens:,} tokens, {dataset.num_supervised:,} supervised"
    )
