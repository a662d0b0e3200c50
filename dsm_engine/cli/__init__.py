"""The `dsm` command: parses, calls, prints; no logic.

A user's fault ends it with one line on standard error and exit code 2 (`dsm train` has more
codes: docs/faults.md); a traceback is a fault of the engine's.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from dsm_engine import __version__
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest

# Each is a module of this package with `configure(parser)` and `run(arguments)`; only the one
# asked for is imported.
_COMMANDS = {
    "preprocess": "published sources or JSONL -> tokenized dataset with supervised spans",
    "merge": "parts that several machines preprocessed -> tokenized dataset",
    "pack": "tokenized dataset -> pack index, with the fill before and after",
    "plan": "what a training run will take: memory, communication, time; ranks layouts; no GPU",
    "train": "fine-tune on packs; under torchrun on many ranks",
    "convert": "checkpoint <-> Hugging Face folder; GGUF -> Hugging Face folder",
    "evaluate": "answer benchmark problems, with and without tools, and grade the answers",
    "inspect": "show documents or packs of a tokenized dataset, supervised tokens marked",
    "card": "write the dataset card of a tokenized dataset, as Markdown and HTML with plots",
    "verify": "check a tokenized dataset, or that a model isolates the documents of a pack",
    "doctor": "what is installed here, what works, and how to get what is missing",
    "quickstart": "the whole path on an embedded data set, in a few minutes on a CPU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dsm",
        description="Fine-tunes Llama-architecture models on mathematical instruction data.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="dsm COMMAND --help shows the options and an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"dsm_engine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked is not None and asked not in _COMMANDS:
        parser.error(f"unknown command {asked!r} {nearest(asked, list(_COMMANDS))}")
    for name, summary in _COMMANDS.items():
        module = importlib.import_module(f"dsm_engine.cli.{name}") if name == asked else None
        command = commands.add_parser(
            name,
            help=summary,
            description=(module.__doc__ if module else summary),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module is not None:
            module.configure(command)
            command.set_defaults(run=module.run)
    arguments = _parse(parser, words)
    try:
        return arguments.run(arguments) or 0
    except DsmError as error:
        # Every rank prints: the fault may be of one machine only. The rank says whose line it is.
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"dsm {arguments.command}: error{rank}: {error}", file=sys.stderr)  # noqa: T201
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print(f"dsm {arguments.command}: interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Takes overrides behind options too (`--resume training.steps=9`), which argparse alone
    leaves over once a command's positional arguments have begun."""
    arguments, left = parser.parse_known_args(words)
    wrong = [word for word in left if word.startswith("-") or "=" not in word]
    if wrong or (left and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or left)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments
