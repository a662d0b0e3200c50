"""Training runs under many layouts, several in one torchrun launch, and what they gave."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsm_engine.training.convert import convert
from dsm_engine.training.metrics import read_metrics

_WORKER = Path(__file__).parent / "distributed" / "layouts_worker.py"
_TP2 = {"tensor_model_parallel_size": 2}
_SP = {**_TP2, "sequence_parallel": True}
_PP2 = {"pipeline_model_parallel_size": 2}
_REPLICATED = {"use_distributed_optimizer": False}
_OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, _TP2),
    "tp2_sp": (2, _SP),
    "pp2": (2, _PP2),
    "pp2_interleaved": (2, {**_PP2, "virtual_pipeline_model_parallel_size": 2}),
    "dp2": (2, _REPLICATED),
    "dp2_overlap": (2, _OVERLAP),
    "cp2": (2, {"context_parallel_size": 2}),
    "tp2_sp_pp2": (4, {**_SP, **_PP2}),
    "tp2_sp_dp2": (4, {**_SP, **_OVERLAP}),
    "pp2_dp2": (4, {**_PP2, **_OVERLAP}),
}
"""The layouts of the parity table: ranks, and the recipe's `parallel` section."""


def run_jobs(folder: Path, num_ranks: int, jobs: Sequence[dict[str, Any]]) -> None:
    """Runs {"recipe", "resume"} jobs in one launch of so many ranks."""
    jobs_file = folder / f"jobs_{num_ranks}.json"
    jobs_file.write_text(json.dumps(list(jobs)), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, str(num_ranks), str(_WORKER), str(jobs_file)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """The run's metrics of a kind."""
    return [line for line in read_metrics(run) if line["kind"] == kind]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run (its latest checkpoint) or of a checkpoint, by Hugging Face's names."""
    run = checkpoint.parent.parent if checkpoint.name.startswith("step_") else checkpoint
    exported = run / "exported" / checkpoint.name
    if not exported.exists():
        exported.parent.mkdir(exist_ok=True)
        convert(checkpoint, exported)
    return load_file(exported / "model.safetensors")


def relative_l2(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference over the norm of `other`."""
    difference = torch.linalg.vector_norm(mine.double() - other.double())
    return float(difference / torch.linalg.vector_norm(other.double()))
