"""Answers benchmark problems greedily, with and without tools, and grades the answers.

dsm evaluate configs/evaluate.yaml model=exported output=runs/x/evaluation
dsm evaluate configs/evaluate.yaml model=exported modes=[cot] limit=20
"""

import argparse
import sys
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron
from dsm_engine.cli.recipe_arguments import add_recipe_arguments


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--unsafe-exec",
        action="store_true",
        help="run the model's programs WITHOUT a sandbox, where there is no bubblewrap",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluates and prints one line a benchmark and mode."""
    quiet_megatron()
    from dsm_engine.cli.terminal import ProgressLine, console
    from dsm_engine.evaluation.evaluate import EvaluateRecipe, evaluate
    from dsm_engine.recipes import load_recipe
    from dsm_engine.sandbox import UNSAFE_WARNING

    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, EvaluateRecipe)
    if arguments.unsafe_exec:
        print(UNSAFE_WARNING, file=sys.stderr)  # noqa: T201
    replaced = (recipe.output / "summary.json").exists()
    with ProgressLine("evaluate (generations)") as line:
        summary = evaluate(
            recipe,
            progress=lambda what, done, total: line.update(done, total, what),
            unsafe_exec=arguments.unsafe_exec,
        )
    show = console()
    for name, modes in summary["benchmarks"].items():
        for mode, result in modes.items():
            if result is None:
                show.print(f"{name} {mode}: skipped: {summary['skipped'][mode]}", markup=False)
                continue
            failures = ", ".join(f"{n} {cause}" for cause, n in result["failures"].items())
            show.print(
                f"{name} {mode}: {result['accuracy']:.1%} of {result['n']}"
                f"{f' (failures: {failures})' if failures else ''}, {result['seconds']:.1f} s",
                markup=False,
            )
    show.print(f"-> {recipe.output}", markup=False)
    if replaced:
        show.print(f"replaced the evaluation that stood in {recipe.output}", markup=False)
