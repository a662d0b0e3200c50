"""RUN/faults.jsonl: what went wrong, one line each, and which examples were there.

Lines are added and never taken away: a run that is resumed before a fault comes to it again and
writes another line.
"""

import math
from pathlib import Path
from typing import Any

import orjson

from dsm_engine.errors import DsmError


class FaultLedger:
    """The ledger of a run; only rank 0 writes."""

    NAME = "faults.jsonl"

    def __init__(self, run: Path) -> None:
        self._path = run / self.NAME

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds a line. Numbers that are not finite are written as text."""
        line = orjson.dumps(_as_json({"kind": kind, "step": step, **values}))
        with self._path.open("ab") as file:
            file.write(line + b"\n")

    def lines(self) -> list[dict[str, Any]]:
        """All lines; a torn last one (a killed run) is left out.

        Raises DsmError where one is not JSON.
        """
        if not self._path.exists():
            return []
        whole = self._path.read_bytes().split(b"\n")[:-1]
        try:
            return [orjson.loads(line) for line in whole]
        except orjson.JSONDecodeError as error:
            raise DsmError(f"{self._path}: holds a line that is not JSON: {error}") from error

    def num_skipped(self, *, until: int) -> int:
        """Steps gone over among the first `until`."""
        skipped = (line for line in self.lines() if line.get("action") == "skipped")
        return len({line["step"] for line in skipped if line["step"] <= until})


def _as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf, -inf: JSON has no such numbers
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value
