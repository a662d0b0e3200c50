"""What a run ran on: versions, machine, command line; for run folders and bug reports."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "dsm-engine",
    "torch",
    "megatron-core",
    "transformer-engine",
    "numpy",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "transformers",
    "pydantic",
)


def environment_report() -> dict[str, Any]:
    """Versions, machine and command line as plain values; absent packages are null."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "source_commit": _source_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "gpus": _gpus(),
        },
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _source_commit() -> str | None:
    """The commit of the checkout this package runs from (`-dirty` appended where it differs)."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    # Only where torch is loaded already: a report must not cost its import.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
