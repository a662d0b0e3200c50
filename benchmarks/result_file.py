"""Timing, and the one form in which every benchmark of the project writes what it measured:

    {machine: {...}, rows: [{name, n, value, unit, baseline, baseline_value, ratio, command, ...}]}

`ratio` says how many times better the value is than the baseline: baseline_value / value for
seconds, value / baseline_value for rates. A peer that is not installed is null, its ratio too.
Where a measurement failed, the row says so in `error` and its value is null.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from dsm_engine.files import write_json

SECONDS = "s"
_PACKAGES = ("torch", "numpy", "megatron-core", "trl", "datasets", "numba", "seqpacker")
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What repeated measurements came to."""

    median: float
    quartiles: tuple[float, float]
    repetitions: int

    def per(self, n: int) -> "Timing":
        """The same for one of n equal pieces of the work."""
        first, third = self.quartiles
        return Timing(
            median=self.median / n,
            quartiles=(first / n, third / n),
            repetitions=self.repetitions,
        )


def measure(call: Callable[[], Any], repetitions: int, *, warm_up: int = 1) -> Timing:
    """Seconds of a call, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
        del result  # outside the time, and before the next call needs the memory
    return summarize(seconds)


def summarize(values: Sequence[float]) -> Timing:
    """Median and quartiles of measurements made elsewhere."""
    if len(values) == 1:
        first = third = values[0]
    else:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(
        median=statistics.median(values), quartiles=(first, third), repetitions=len(values)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure and, where there is one, its peer's."""

    name: str
    n: int
    """Documents, packs or tokens, whatever the row is about."""
    value: Timing
    unit: str = SECONDS
    baseline: str | None = None
    """What the peer is."""
    baseline_value: Timing | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the JSON is to say of it."""

    @property
    def ratio(self) -> float | None:
        if self.baseline_value is None:
            return None
        ours, theirs = self.value.median, self.baseline_value.median
        return theirs / ours if self.unit == SECONDS else ours / theirs

    def to_json(self, command: str) -> dict[str, Any]:
        theirs = self.baseline_value
        return {
            "name": self.name,
            "n": self.n,
            "value": self.value.median,
            "unit": self.unit,
            "baseline": self.baseline if theirs else None,
            "baseline_value": theirs.median if theirs else None,
            "ratio": self.ratio,
            "command": command,
            "quartiles": self.value.quartiles,
            "repetitions": self.value.repetitions,
            "baseline_quartiles": theirs.quartiles if theirs else None,
            "baseline_repetitions": theirs.repetitions if theirs else None,
            **self.details,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRow:
    """A figure that could not be had."""

    name: str
    n: int
    error: str
    """One line."""
    unit: str = SECONDS

    def to_json(self, command: str) -> dict[str, Any]:
        nothing = dict.fromkeys(("baseline", "baseline_value", "ratio"))
        return {
            "name": self.name,
            "n": self.n,
            "value": None,
            "unit": self.unit,
            **nothing,
            "command": command,
            "error": self.error,
        }


def publish(
    rows: Sequence[Row | FailedRow],
    output: Path | None,
    *,
    machine: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Prints the table and, where asked to, writes the rows with the machine's fingerprint.

    `machine` adds to the fingerprint, `more` to the file.
    """
    print_table(rows)
    if output is not None:
        command = " ".join(["python", *sys.argv])
        content = {
            "machine": describe_machine() | dict(machine or {}),
            "rows": [row.to_json(command) for row in rows],
            **(more or {}),
        }
        write_json(output, content)


def print_table(rows: Sequence[Row | FailedRow]) -> None:
    """Name, our figure and how far its quartiles lie apart, the peer's, the ratio, who it is."""
    width = max((len(row.name) for row in rows), default=0)
    print(
        f"{'row':{width}}  {'ours':>12} {'spread':>7}  {'baseline':>12}  {'ratio':>10}  baseline is"
    )
    for row in rows:
        if isinstance(row, FailedRow):
            print(f"{row.name:{width}}  {'null':>12}  {row.error}")
            continue
        ours = _quantity(row.value, row.unit)
        first, third = row.value.quartiles
        spread = (third - first) / row.value.median
        theirs = "null" if row.baseline_value is None else _quantity(row.baseline_value, row.unit)
        ratio = "null" if row.ratio is None else f"{row.ratio:,.2f}x"
        who = row.baseline or "-"
        print(f"{row.name:{width}}  {ours:>12} {spread:>7.1%}  {theirs:>12}  {ratio:>10}  {who}")


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **_commit(),
    }


def _quantity(timing: Timing, unit: str) -> str:
    if unit != SECONDS:
        return f"{timing.median:,.0f} {unit}"
    for scale, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if timing.median * scale >= 1:
            return f"{timing.median * scale:.2f} {name}"
    return f"{timing.median * 1e9:.2f} ns"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> dict[str, Any]:
    """The commit measured, and whether files differ from it; null outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_REPOSITORY, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
