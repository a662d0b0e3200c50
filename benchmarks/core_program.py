"""Runs core_bench (csrc/bench), which times the C++ core without Python."""

import subprocess
from pathlib import Path
from typing import Any

import orjson


def run(program: Path, *arguments: object) -> dict[str, Any]:
    """What it printed. Raises CalledProcessError where it fails; its message stands above."""
    command = [str(program.resolve()), *map(str, arguments)]
    return orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
