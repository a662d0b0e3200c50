"""Reads every byte of a tokenized dataset: the checksums of its manifest, then its structure.

Of Megatron's .bin and .idx alone, which have no checksums, the structure is checked. A pack index
is checked the same way, and with --dataset that it is of that dataset.

dsm verify data/train
dsm verify data/train.random-4096.packs --dataset data/train

With --isolation: that no document of a pack has a number that depends on its neighbours' tokens,
and that each has the numbers it has alone, on a training recipe's model, layout and data.

dsm verify --isolation configs/gsm8k_smollm2.yaml training.precision=bf16
torchrun --nproc-per-node 2 -m dsm_engine.cli verify --isolation configs/x.yaml \\
    parallel.tensor_model_parallel_size=2 parallel.sequence_parallel=true

With --gradients: that a global batch gives the same gradient, loss sum and token count however it
is split into micro-batches and dealt to ranks, and the same bits when it is run twice.

dsm verify --gradients configs/gsm8k_smollm2.yaml --packs 2
"""

import argparse
import os
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron

_PRECISIONS = {"fp32": ("fp32",), "bf16": ("bf16",), "both": ("fp32", "bf16")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "overrides",  # the name under which words behind options come too
        metavar="PREFIX | section.key=value",
        nargs="*",
        default=[],
        help="tokenized dataset, or a pack-index file; with --isolation: values that take "
        "precedence over the recipe's",
    )
    parser.add_argument("--dataset", type=Path, help="the dataset a pack index should be of")
    isolation = parser.add_argument_group("isolation of documents")
    isolation.add_argument("--isolation", metavar="RECIPE", type=Path, help="a training recipe")
    isolation.add_argument(
        "--documents", metavar="N", type=int, help="documents of a pack to change in turn (6)"
    )
    isolation.add_argument(
        "--forward-only",
        action="store_true",
        help="no gradients: for attention that has no backward pass on this device",
    )
    gradients = parser.add_argument_group("gradients of a global batch")
    gradients.add_argument("--gradients", metavar="RECIPE", type=Path, help="a training recipe")
    both = parser.add_argument_group("either of them")
    both.add_argument(
        "--packs",
        metavar="N",
        type=int,
        help="packs to read: those with most documents (3), or the first of the batch (4)",
    )
    both.add_argument(
        "--precision", choices=_PRECISIONS, help="of the model's numbers (the recipe's)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ends with exit code 2 and the first damage, or the first leak, if any."""
    from dsm_engine.errors import DsmError

    if arguments.isolation is not None and arguments.gradients is not None:
        raise DsmError("--isolation and --gradients are two runs: give one of them")
    if arguments.isolation is not None:
        _refuse_words(arguments, "--isolation", arguments.isolation)
        return _verify_isolation(arguments)
    _refuse_options(arguments, ("documents", "forward_only"), "--isolation RECIPE")
    if arguments.gradients is not None:
        _refuse_words(arguments, "--gradients", arguments.gradients)
        return _verify_gradients(arguments)
    _refuse_options(arguments, ("packs", "precision"), "--isolation or --gradients RECIPE")
    if len(arguments.overrides) != 1:
        raise DsmError(
            f"give one PREFIX, or --isolation or --gradients RECIPE "
            f"(found {len(arguments.overrides)} words)"
        )
    prefix = Path(arguments.overrides[0])
    if prefix.suffix in (".yaml", ".yml") and prefix.is_file():
        raise DsmError(f"{prefix}: is a recipe, no dataset: dsm verify --isolation {prefix}")
    return _verify_files(prefix, arguments.dataset)


def _refuse_words(arguments: argparse.Namespace, option: str, recipe: Path) -> None:
    """Raises DsmError where something stands beside a recipe that does not go with one."""
    from dsm_engine.errors import DsmError

    if arguments.dataset is not None:
        raise DsmError(f"--dataset goes with a pack index, not with {option}")
    for word in arguments.overrides:
        if "=" not in word:
            raise DsmError(
                f"{word}: {option} RECIPE takes the dataset from the recipe; give "
                f"section.key=value, or PREFIX without {option}"
            )
    if not recipe.exists() and Path(f"{recipe}.idx").is_file():
        raise DsmError(
            f"{recipe}: is a dataset; {option} takes a training recipe, whose data.train names "
            f"the dataset"
        )


def _refuse_options(arguments: argparse.Namespace, names: tuple[str, ...], goes_with: str) -> None:
    from dsm_engine.errors import DsmError

    for name in names:
        given = getattr(arguments, name)
        if given is not None and given is not False:
            raise DsmError(f"--{name.replace('_', '-')} goes with {goes_with}")


def _verify_files(prefix: Path, dataset: Path | None) -> int:
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.pack_file import is_pack_index
    from dsm_engine.errors import DsmError

    if is_pack_index(prefix):
        line = _verify_packs(prefix, dataset)
    elif dataset is not None:
        raise DsmError(f"{prefix}: is no pack index, and --dataset goes with one")
    else:
        line = _verify_dataset(prefix)
    console().print(line, markup=False)
    return 0


def _verify_isolation(arguments: argparse.Namespace) -> int:
    quiet_megatron()
    from dsm_engine.cli.isolation_report import print_report
    from dsm_engine.cli.terminal import ProgressLine
    from dsm_engine.errors import DsmError
    from dsm_engine.recipes import load_recipe
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.isolation import IsolationOptions, verify_isolation

    recipe = load_recipe(arguments.isolation, arguments.overrides, TrainRecipe)
    default = IsolationOptions()
    options = IsolationOptions(
        num_packs=default.num_packs if arguments.packs is None else arguments.packs,
        num_documents=default.num_documents if arguments.documents is None else arguments.documents,
        precisions=_PRECISIONS.get(arguments.precision, ()),
        gradients=not arguments.forward_only,
    )
    if os.environ.get("RANK", "0") != "0":  # the report is the same on every rank
        return 2 if verify_isolation(recipe, options).failure else 0
    with ProgressLine("passes") as progress:
        report = verify_isolation(recipe, options, progress.update)
    print_report(report)
    if report.failure is not None:
        raise DsmError(report.failure)
    return 0


def _verify_gradients(arguments: argparse.Namespace) -> int:
    quiet_megatron()
    from dsm_engine.cli.gradients_report import print_report
    from dsm_engine.cli.terminal import ProgressLine
    from dsm_engine.errors import DsmError
    from dsm_engine.recipes import load_recipe
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.gradients import GradientsOptions, verify_gradients

    recipe = load_recipe(arguments.gradients, arguments.overrides, TrainRecipe)
    options = GradientsOptions(
        num_packs=arguments.packs, precisions=_PRECISIONS.get(arguments.precision, ())
    )
    if os.environ.get("RANK", "0") != "0":  # the report is the same on every rank
        return 2 if verify_gradients(recipe, options).failure else 0
    with ProgressLine("micro-batches") as progress:
        report = verify_gradients(recipe, options, progress.update)
    print_report(report)
    if report.failure is not None:
        raise DsmError(report.failure)
    return 0


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
