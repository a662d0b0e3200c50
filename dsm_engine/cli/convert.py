"""Converts weights by what SOURCE is.

dsm convert runs/x exported            a run's latest checkpoint -> Hugging Face folder
dsm convert runs/x/checkpoints/step_00000100 exported
dsm convert hugging_face_folder runs/y  -> a run folder whose step 0 has these weights
dsm convert model.gguf exported        (needs transformers and gguf)
"""

import argparse
import re
from pathlib import Path

from dsm_engine.cli.quiet import quiet_megatron


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("destination", metavar="DESTINATION", type=Path)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of the result; default: the source's"
    )
    parser.add_argument(
        "--shard-size",
        type=_num_bytes,
        default="5GB",
        metavar="SIZE",
        help="largest safetensors file of a Hugging Face folder made of a checkpoint, such as "
        "800MB or 5GB (10^9 bytes, the default); a larger tensor gets a file of its own",
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts and says what became what."""
    quiet_megatron()
    from dsm_engine.cli.terminal import console
    from dsm_engine.training.convert import convert

    done = convert(
        arguments.source,
        arguments.destination,
        precision=arguments.precision,
        shard_bytes=arguments.shard_size,
    )
    console().print(
        f"{done.direction}: {done.source} -> {done.destination} "
        f"({done.num_parameters / 1e6:,.2f} M parameters)",
        markup=False,
    )


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)(MB|GB)", text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 800MB or 5GB")
    return int(match[1]) * {"MB": 10**6, "GB": 10**9}[match[2]]
