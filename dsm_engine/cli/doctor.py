"""Says what is installed here, what works, and how to get what is missing: one line a finding.

dsm doctor

The exit code is 1 where something is broken that every run needs.
"""

import argparse

_MARKS = {"ok": "[green]ok  [/]", "absent": "[yellow]-   [/]", "broken": "[red]FAIL[/]"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments: none."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings as they come."""
    from rich.markup import escape

    from dsm_engine.cli.terminal import console
    from dsm_engine.doctor import findings, is_fit

    show = console()
    found = []
    for finding in findings():
        found.append(finding)
        show.print(f"{_MARKS[finding.state]} {finding.name:<20} {escape(finding.text)}")
    return 0 if is_fit(found) else 1
