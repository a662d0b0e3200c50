"""`dsm verify` on several ranks: many runs of it in one torchrun launch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TP2 = ["parallel.tensor_model_parallel_size=2"]
TP2_SP = [*TP2, "parallel.sequence_parallel=true"]
PP2 = ["parallel.pipeline_model_parallel_size=2"]
PP2_VP2 = [*PP2, "parallel.virtual_pipeline_model_parallel_size=2"]
PP4 = ["parallel.pipeline_model_parallel_size=4"]
CP2 = ["parallel.context_parallel_size=2", "data.alignment=4"]
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
Job = tuple[str, list[str], str | None]
"""The option, words after the recipe, and the fault that is put in: of tests/isolation_faults.py
or tests/gradient_faults.py."""

_WORKER = Path(__file__).parent / "distributed" / "verify_worker.py"
_REPOSITORY = Path(__file__).resolve().parents[1]


def run_jobs(
    folder: Path, recipe: dict[str, Any], jobs: dict[str, Job], *, ranks: int
) -> dict[str, list[dict[str, Any]]]:
    """What each rank printed and its exit code, by job."""
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(json.dumps(recipe), encoding="utf-8")
    described = {
        name: {"words": ["verify", option, str(recipe_path), *words], "fault": fault}
        for name, (option, words, fault) in jobs.items()
    }
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps(described), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, str(ranks), str(_WORKER), str(jobs_file)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(ranks)]
        for name in jobs
    }
