"""Converts weights by what SOURCE is.

dsm convert runs/x exported            a run's latest checkpoint -> Hugging Face folder
dsm convert runs/x/checkpoints/step_00000100 exported
dsm convert hugging_face_folder runs/y  -> a run folder whose step 0 has these weights
dsm convert model.gguf exported        (needs transformers and gguf)
"""

import argparse
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("destination", metavar="DESTINATION", type=Path)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of the result; default: the source's"
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts and says what became what."""
    quiet_megatron()
    from dsm_engine.cli.terminal import console
    from dsm_engine.training.convert import convert

    done = convert(arguments.source, arguments.destination, precision=arguments.precision)
    console().print(
        f"{done.direction}: {done.source} -> {done.destination} "
        f"({done.num_parameters / 1e6:,.2f} M parameters)",
        markup=False,
    )
