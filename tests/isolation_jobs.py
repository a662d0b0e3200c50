"""`dsm verify --isolation` on two ranks: several runs of it in one torchrun launch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TP2 = ["parallel.tensor_model_parallel_size=2"]
TP2_SP = [*TP2, "parallel.sequence_parallel=true"]
Job = tuple[list[str], str | None]
"""Words after the recipe, and the fault put into the model (tests/isolation_faults.py)."""

_WORKER = Path(__file__).parent / "distributed" / "isolation_worker.py"
_REPOSITORY = Path(__file__).resolve().parents[1]


def run_jobs(
    folder: Path, recipe: dict[str, Any], jobs: dict[str, Job]
) -> dict[str, list[dict[str, Any]]]:
    """What each of the two ranks printed and its exit code, by job."""
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(json.dumps(recipe), encoding="utf-8")
    described = {
        name: {"words": ["verify", "--isolation", str(recipe_path), *words], "fault": fault}
        for name, (words, fault) in jobs.items()
    }
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps(described), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, "2", str(_WORKER), str(jobs_file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]
        for name in jobs
    }
