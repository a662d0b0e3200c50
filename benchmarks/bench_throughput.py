"""Throughput of the training step under a recipe's layout, on any number of nodes.

  torchrun --nproc-per-node 8 benchmarks/bench_throughput.py RECIPE [section.key=value ...]
      [--steps N] [--warmup N] [--synthetic] [--baseline SMALLER.json] --output FILE.json

The step is the engine's own: packs through PackStream, Megatron's schedule, gradients, optimizer.
Nothing is saved, and weights are random, so that no file but the data is read; with --synthetic
not even those. Steps of the warm-up are left out. `--baseline` is the JSON of a run on fewer GPUs:
the scaling efficiency is tokens a second and GPU over that run's. benchmarks/README.md has the
form of the JSON.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path


def main() -> int:
    arguments = _arguments()
    warnings.filterwarnings("ignore")
    from dsm_engine.cli.quiet import quiet_megatron
    from dsm_engine.errors import DsmError

    quiet_megatron()
    from throughput_run import measure_recipe

    try:
        with tempfile.TemporaryDirectory(prefix="dsm_throughput_") as folder:
            measure_recipe(
                arguments.recipe,
                arguments.overrides,
                steps=arguments.steps,
                warmup=arguments.warmup,
                synthetic=arguments.synthetic,
                peak=arguments.peak_flops,
                baseline=arguments.baseline,
                output=arguments.output,
                folder=Path(folder),
            )
    except DsmError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"bench_throughput: {error}", file=sys.stderr)
        return 2
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", metavar="RECIPE", type=Path)
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[])
    parser.add_argument("--steps", type=_positive, default=10, help="measured; default 10")
    parser.add_argument("--warmup", type=_positive, default=3, help="before them; default 3")
    parser.add_argument(
        "--synthetic", action="store_true", help="random tokens in the place of the recipe's data"
    )
    parser.add_argument(
        "--peak-flops",
        type=float,
        metavar="N",
        help="operations a second of one device, for MFU; default: model/flops.py's table",
    )
    parser.add_argument("--baseline", type=Path, metavar="SMALLER.json")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    return parser.parse_intermixed_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
