"""What GPU the figures were measured on, and what state it was in."""

import shutil
import subprocess
from typing import Any

import torch

_QUERY = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)


def describe_gpu() -> dict[str, Any]:
    """The current CUDA device, and the torch that ran on it."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        },
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def gpu_state() -> dict[str, str | None]:
    """Driver, clocks (MHz), temperature and power, as nvidia-smi has them; null without it."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return dict.fromkeys(_QUERY)
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    command = [
        nvidia_smi,
        f"--query-gpu={','.join(_QUERY)}",
        "--format=csv,noheader,nounits",
        f"--id=GPU-{uuid.removeprefix('GPU-')}",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return dict.fromkeys(_QUERY)
    return parse_gpu_state(answer.stdout)


def parse_gpu_state(text: str) -> dict[str, str | None]:
    """What nvidia-smi prints of one GPU; null where it says something else."""
    values = [value.strip() for value in text.strip().split(",")]
    if len(values) != len(_QUERY):
        return dict.fromkeys(_QUERY)
    return dict(zip(_QUERY, values, strict=True))
