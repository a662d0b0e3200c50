"""Fine-tunes a model on packs.

dsm train configs/gsm8k_smollm2.yaml training.lr=2e-5
torchrun --nproc-per-node 8 -m dsm_engine.cli train configs/x.yaml --resume
"""

import argparse
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron
from dsm_engine.cli.recipe_arguments import add_recipe_arguments


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the run's latest checkpoint (from the beginning where it has none)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains, with a progress bar on rank 0."""
    quiet_megatron()
    from dsm_engine.cli.in_job import in_job_evaluation
    from dsm_engine.cli.train_observer import TerminalObserver
    from dsm_engine.recipes import load_recipe
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train

    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, TrainRecipe)
    evaluate = in_job_evaluation(recipe.evaluation)
    with TerminalObserver() as observer:
        train(recipe, resume=arguments.resume, observer=observer, evaluate=evaluate)
