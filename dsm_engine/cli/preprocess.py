"""Turns sources into a tokenized dataset with supervised spans.

dsm preprocess configs/data/gsm8k.yaml output=data/gsm8k
dsm preprocess configs/data/gsm8k.yaml on_error=quarantine overlong=drop
"""

import argparse
import time
from pathlib import Path

from dsm_engine.cli.recipe_arguments import add_recipe_arguments


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Preprocesses and prints what was kept and what was not, by cause."""
    from dsm_engine.cli.terminal import ProgressLine, console
    from dsm_engine.data.preprocess import preprocess
    from dsm_engine.data.recipe import PreprocessRecipe
    from dsm_engine.recipes import load_recipe

    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, PreprocessRecipe)
    replaced = recipe.output.with_name(recipe.output.name + ".manifest.json").exists()
    started = time.perf_counter()
    with ProgressLine("preprocess (bytes)") as line:
        report = preprocess(recipe, progress=lambda done, total: line.update(done, total))
    seconds = time.perf_counter() - started
    show = console()
    for name, counts in report.ledger.sources.items():
        causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.dropped.items())
        cut = f", {counts.truncated:,} truncated" if counts.truncated else ""
        unknown = f", {counts.unknown_tokens:,} unknown tokens" if counts.unknown_tokens else ""
        show.print(
            f"{name}: {counts.read:,} read = {counts.kept:,} kept + "
            f"{counts.dropped.total():,} dropped{f' ({causes})' if causes else ''}{cut}{unknown}",
            markup=False,
        )
    mean = report.num_tokens / report.num_documents
    show.print(
        f"{report.num_documents:,} documents, {report.num_tokens:,} tokens (mean {mean:.1f}, "
        f"longest {report.max_document_tokens:,}), {report.num_supervised_tokens:,} supervised, "
        f"in {seconds:.1f} s -> {report.output}",
        markup=False,
    )
    show.print(f"encoder: {report.encoder}", markup=False)
    if replaced:
        show.print(f"replaced the dataset that stood at {report.output}", markup=False)
    if report.quarantine is not None:
        show.print(f"{report.num_quarantined:,} rows in {report.quarantine}", markup=False)
