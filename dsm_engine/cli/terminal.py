"""Progress bars on a terminal, plain lines elsewhere."""

import io
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL_S = 10.0


def console() -> Console:
    """Standard output; plain text where it is not a terminal, escapes where it has no Unicode."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(highlight=False, soft_wrap=True)


class ProgressLine:
    """A bar with counts, elapsed time and ETA; on a pipe, one line every few seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = console()
        self._bar: Progress | None = None
        self._task: object = None
        self._started = time.monotonic()
        self._last_line = self._started

    def update(self, done: float, total: float, note: str = "") -> None:
        """Shows `done` of `total`; `note` stands behind the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if now - self._last_line < _PLAIN_INTERVAL_S:
            return
        self._last_line = now
        elapsed = now - self._started
        eta = f", ETA {elapsed * (total - done) / done:.0f} s" if done else ""
        self._console.print(
            f"{self._title}: {done:,.0f}/{total:,.0f} {note} ({elapsed:.0f} s{eta})", markup=False
        )

    def restart(self) -> None:
        """Counts time, and so the ETA, from here: what came before was setting up."""
        self._started = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task)  # type: ignore[arg-type]

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        (self._bar.console if self._bar else self._console).print(text, markup=False)

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
