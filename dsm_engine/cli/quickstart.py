"""The whole path on an embedded data set: generate, preprocess, pack, train, convert, evaluate.

dsm quickstart --output runs/quickstart
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="(%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1234, help="(%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Runs it and prints the summary."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.quickstart.run import quickstart

    show = console()

    def say(text: str) -> None:
        show.print(text, markup=False)

    summary = quickstart(arguments.output, seed=arguments.seed, say=say)
    say("\n== summary")
    say(f"loss           {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}")
    for mode, name in (("tool", "with tools"), ("cot", "without tools")):
        before, after = (summary[f"accuracy_{when}"][mode] for when in ("before", "after"))
        shown = "skipped (no sandbox)" if after is None else f"{before:.1%} -> {after:.1%}"
        say(f"{name:<14} {shown} of {summary['problems_held_out']} held-out problems")
    say(f"pack fill      {summary['pack_fill']:.2%}")
    say(f"training       {summary['tokens_per_s']:,.0f} tokens/s")
    say(f"in all         {summary['seconds_total']:.0f} s")
    say(summary["lesson"])
    for name, path in summary["artefacts"].items():
        say(f"  {name:<12} {path}")
    say(f"  {'summary':<12} {arguments.output / 'summary.json'}")
