"""Faults of one rank of a job: all ranks do the same, and the run goes on or ends in time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.faults.exits import HANG
from dsm_engine.training.loop import train
from tests.layout_runs import LAYOUTS, lines, relative_l2, weights

pytestmark = pytest.mark.multi

_WORKER = Path(__file__).parent / "faults_worker.py"
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SKIPPED = ("dp2_overlap", "pp2_interleaved", "tp2_sp")
STOPPED = {"dp2_overlap": 1, "tp2": 1, "pp2": 0}  # the rank that gets the signal
STEPS, HANG_S = 5, 4.0
NUMBERS = ("loss", "grad_norm", "lr", "num_supervised", "consumed_samples")
Make = Any


class Launch:
    """What one torchrun job of many runs left: their folders, and how it ended."""

    def __init__(self, folder: Path, code: int, output: str) -> None:
        self.folder = folder
        self.code = code
        self.output = output


@pytest.fixture(scope="module")
def launch(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Make
) -> Launch:
    folder = tmp_path_factory.mktemp("faults")
    jobs: list[dict[str, Any]] = []

    def add(
        name: str,
        layout: str,
        fault: Any = None,
        *,
        resume: bool = False,
        save_every: int = 1000,
        **faults: Any,
    ) -> None:
        changes = {"parallel": LAYOUTS[layout][1], "model__num_layers": 4, "faults": faults}
        recipe = make_recipe(sample_data, folder / name, training__steps=STEPS, **changes)
        recipe["training"]["global_batch_size"] = 8
        recipe["logging"]["save_every"] = save_every
        jobs.append({"recipe": recipe, "resume": resume, "fault": fault})

    for layout in SKIPPED:
        overflow = {"kind": "overflow", "rank": 1, "step": 3}
        add(f"skipped_{layout}", layout, overflow, non_finite="skip")
    for layout, rank in STOPPED.items():
        add(f"whole_{layout}", layout)
        add(f"stopped_{layout}", layout, {"kind": "signal", "rank": rank, "step": 2})
        add(f"stopped_{layout}", layout, resume=True)
    add("stopped_at_start", "dp2", {"kind": "signal", "rank": 1, "step": 0})
    in_save = {"kind": "signal_in_save", "rank": 1, "step": 2}
    add("stopped_in_save", "dp2", in_save, save_every=2)
    add("hung", "dp2_overlap", {"kind": "sleep", "rank": 1, "step": 2}, hang_timeout_s=HANG_S)
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    command = [*_TORCHRUN, str(_WORKER), str(path)]
    code = _run(command, folder / "output")
    output = (folder / "output").read_text(encoding="utf-8")
    assert (folder / "hung").exists(), output[-4000:]
    return Launch(folder, code, output)


@pytest.fixture(scope="module")
def one_skipped(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Make
) -> Path:
    """The run of one process that goes over the same step."""
    from tests.faults import faults_worker

    run = tmp_path_factory.mktemp("one") / "run"
    recipe = make_recipe(sample_data, run, training__steps=STEPS, model__num_layers=4)
    recipe["training"]["global_batch_size"] = 8
    recipe["faults"] = {"non_finite": "skip"}
    parsed = TrainRecipe.model_validate(recipe)
    with faults_worker.put_in({"kind": "overflow", "rank": 0, "step": 3}):
        train(parsed)
    return run


@pytest.mark.parametrize("layout", SKIPPED)
def test_all_ranks_go_over_a_step_that_one_found_not_finite(
    launch: Launch, one_skipped: Path, layout: str
) -> None:
    run = launch.folder / f"skipped_{layout}"
    found, expected = lines(run, "step"), lines(one_skipped, "step")
    assert [line["step"] for line in found] == [1, 2, 4, 5]
    for mine, other in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    mine, other = weights(run), weights(one_skipped)
    # AdamW's first steps move a weight by lr whatever its gradient's size: roundings show.
    assert all(relative_l2(mine[name], other[name]) < 1e-3 for name in other)
    (fault,) = [json.loads(line) for line in (run / "faults.jsonl").open()]
    assert (fault["step"], fault["what"], fault["action"]) == (3, "gradient norm", "skipped")
    (reference,) = [json.loads(line) for line in (one_skipped / "faults.jsonl").open()]
    assert [p["documents"] for p in fault["packs"]] == [p["documents"] for p in reference["packs"]]
    for mine, other in zip(fault["packs"], reference["packs"], strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-4)


@pytest.mark.parametrize("layout", STOPPED)
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_resuming_changes_nothing(
    launch: Launch, layout: str
) -> None:
    stopped, whole = launch.folder / f"stopped_{layout}", launch.folder / f"whole_{layout}"
    # The signal came in step 2, when that step had begun: the ranks agree in the next.
    folders = sorted(path.name for path in (stopped / "checkpoints").glob("step_*"))
    assert folders == ["step_00000003", f"step_{STEPS:08d}"]
    found, expected = lines(stopped, "step"), lines(whole, "step")
    for mine, other in zip(found, expected, strict=True):
        assert [mine[key] for key in NUMBERS] == [other[key] for key in NUMBERS]
    mine, other = weights(stopped), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("name", "steps", "saved"),
    [
        ("stopped_at_start", 1, ["step_00000001"]),
        ("stopped_in_save", 3, ["step_00000002", "step_00000003"]),
    ],
)
def test_a_signal_during_the_start_or_a_save_stops_behind_the_next_step(
    launch: Launch, name: str, steps: int, saved: list[str]
) -> None:
    run = launch.folder / name
    assert [line["step"] for line in lines(run, "step")] == list(range(1, steps + 1))
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == saved
    assert (run / "checkpoints" / "latest").read_text() == f"{saved[-1]}\n"


def test_a_rank_that_hangs_ends_the_job_with_stacks_of_all_ranks(launch: Launch) -> None:
    assert launch.code != 0
    assert re.search(rf"exitcode\s*: {HANG}", launch.output)
    stacks = [(launch.folder / "hung" / "hang" / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert "in step 2" in stacks[0] and "in step 2" in stacks[1]
    assert re.search(
        r'File ".*/faults_worker.py", line \d+ in faulty', stacks[1].split("Thread")[-1]
    )
    assert "distributed_c10d.py" in stacks[0]  # in a collective, waiting
    for line in launch.output.splitlines():
        if match := re.search(r"no progress for (\d+) s in step 2", line):
            assert int(match.group(1)) <= HANG_S + 3
            return
    pytest.fail("no rank said that it is late")


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_is_the_undisturbed_one(
    launch: Launch, tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = json.loads((launch.folder / "jobs.json").read_text())
    (whole,) = [j["recipe"] for j in recipe if j["recipe"]["run"].endswith("whole_dp2_overlap")]
    run = tmp_path / "run"
    disturbed = {**whole, "run": str(run)}
    disturbed["logging"] = {**whole["logging"], "save_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(disturbed), encoding="utf-8")
    command = [*_TORCHRUN, "--max-restarts", "1", "-m", "dsm_engine.cli", "train", str(path)]
    with (tmp_path / "output").open("wb") as output:
        job = subprocess.Popen(command, stdout=output, stderr=output, env=_one_thread())
        _wait_until((run / "checkpoints" / "latest").exists, job)
        os.kill(_pid_of_rank(job.pid, 1), signal.SIGKILL)
        killed_at = time.monotonic()
        assert job.wait(timeout=120) == 0, (tmp_path / "output").read_text()[-4000:]
    text = (tmp_path / "output").read_text()
    assert "resumed after step" in text, text[-4000:]
    assert time.monotonic() - killed_at < 100
    expected = lines(launch.folder / "whole_dp2_overlap", "step")
    for mine, other in zip(lines(run, "step"), expected, strict=True):
        assert [mine[key] for key in NUMBERS] == [other[key] for key in NUMBERS]
    mine, other = weights(run), weights(launch.folder / "whole_dp2_overlap")
    assert all(torch.equal(mine[name], other[name]) for name in other)
    # Whoever did not begin the run is still refused, at every start.
    assert _run(command, tmp_path / "refused") != 0
    text = (tmp_path / "refused").read_text(encoding="utf-8")
    assert text.count("already holds a run; continue it with --resume") == 4


def _run(command: list[str], output: Path) -> int:
    """To a file: a pipe would wait for whatever a killed process left."""
    with output.open("wb") as file:
        return subprocess.run(
            command, stdout=file, stderr=file, timeout=300, check=False, env=_one_thread()
        ).returncode


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _wait_until(condition: Any, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def _pid_of_rank(agent: int, rank: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == agent and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")
