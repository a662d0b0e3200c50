"""Fine-tunes a model on packs.

dsm train configs/gsm8k_smollm2.yaml training.lr=2e-5
torchrun --nproc-per-node 8 -m dsm_engine.cli train configs/x.yaml --resume
dsm train configs/x.yaml --replay 212

SIGTERM and SIGUSR1 have the step finished and saved; docs/faults.md has the exit codes.
"""

import argparse
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron
from dsm_engine.cli.recipe_arguments import add_recipe_arguments


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_recipe_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--resume",
        action="store_true",
        help="continue from the run's latest checkpoint (from the beginning where it has none)",
    )
    what.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="go through a dumped step again (RUN/faults) and say what in it is not finite",
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains, with a progress bar on rank 0."""
    from dsm_engine.training.faults.stop import StopRequest

    if arguments.replay is not None:
        _replay(arguments)
        return
    with StopRequest() as stop:  # before what takes long: a signal then waits for the first step
        quiet_megatron()
        from dsm_engine.cli.in_job import in_job_evaluation
        from dsm_engine.cli.train_observer import TerminalObserver
        from dsm_engine.recipes import load_recipe
        from dsm_engine.training.config import TrainRecipe
        from dsm_engine.training.loop import train

        recipe = load_recipe(Path(arguments.recipe), arguments.overrides, TrainRecipe)
        evaluate = in_job_evaluation(recipe.evaluation)
        with TerminalObserver() as observer:
            train(
                recipe,
                resume=arguments.resume,
                observer=observer,
                evaluate=evaluate,
                stop=stop,
            )


def _replay(arguments: argparse.Namespace) -> None:
    quiet_megatron()
    from dsm_engine.cli.terminal import console
    from dsm_engine.recipes import load_recipe
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.replay import replay

    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, TrainRecipe)
    terminal = console()
    replay(recipe, arguments.replay, tell=lambda line: terminal.print(line, markup=False))
