"""bench_throughput on one process and on two, and the table and plot of what it wrote."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsm_engine.data.pack_order import PackOrder
from dsm_engine.errors import DsmError
from dsm_engine.files import read_json
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.flops import model_flops
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.run_data import open_run_data

pytestmark = pytest.mark.multi

REPOSITORY = Path(__file__).resolve().parents[2]
BENCH = REPOSITORY / "benchmarks" / "bench_throughput.py"
STEPS, WARMUP = 3, 2
PEAK = 1e12


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """A folder with the recipe and the runs one.json, two.json (TP2) and real.json."""
    folder = tmp_path_factory.mktemp("throughput")
    recipe = make_recipe(sample_data, folder / "run", logging__slices=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    one, two = str(folder / "one.json"), str(folder / "two.json")
    _bench(folder, "--synthetic", "--output", one)
    _bench(folder, "--output", str(folder / "real.json"))
    tp2 = "parallel.tensor_model_parallel_size=2"
    _bench(folder, tp2, "--synthetic", "--baseline", one, "--output", two, ranks=2)
    return folder


def test_both_runs_went_through_the_same_packs_and_operations(results: Path) -> None:
    one, two = _run(results, "one"), _run(results, "two")
    assert one["step_tokens"] == two["step_tokens"]
    assert len(one["step_tokens"]) == STEPS == len(two["step_s"])
    slots = one["global_batch_size"] * one["seq_length"]
    assert all(0.5 * slots < tokens <= slots for tokens in one["step_tokens"])
    assert one["flops"] == two["flops"] > 0
    assert (one["layout"], two["layout"]) == ("DP1", "TP2 DP1")
    assert (one["num_gpus"], two["num_gpus"], two["num_nodes"]) == (1, 2, 1)


def test_rates_follow_from_the_clock(results: Path) -> None:
    for name in ("one", "two", "real"):
        run = _run(results, name)
        assert 0.8 * sum(run["step_s"]) < run["seconds"] < 1.2 * sum(run["step_s"]) + 0.1
        assert run["tokens_per_s"] == pytest.approx(sum(run["step_tokens"]) / run["seconds"])
        slots = STEPS * run["global_batch_size"] * run["seq_length"]
        assert run["slots_per_s_per_gpu"] * run["num_gpus"] == pytest.approx(slots / run["seconds"])
        peak = PEAK * run["num_gpus"] * run["seconds"]
        assert run["mfu"] == pytest.approx(run["flops"] / peak)
        by_phase = sum(run["phases_mean_s"].values())
        assert by_phase == pytest.approx(sum(run["step_s"]) / STEPS, rel=0.2)
        assert run["phases_mean_s"]["forward_backward"] > 0.3 * by_phase
        assert 5e7 < run["memory_peak_bytes"] < 5e9


def test_efficiency_is_tokens_a_gpu_over_those_of_the_smaller_run(results: Path) -> None:
    one, two = _run(results, "one"), _run(results, "two")
    scaling = two["scaling"]
    assert scaling["kind"] == "strong"
    assert scaling["speedup"] == pytest.approx(two["tokens_per_s"] / one["tokens_per_s"])
    assert scaling["efficiency"] == pytest.approx(scaling["speedup"] / 2)
    rows = {row["name"]: row for row in read_json(results / "two.json")["rows"]}
    assert rows["tokens_per_gpu"]["baseline_value"] == one["tokens_per_s_per_gpu"]
    assert "scaling" not in one


def test_real_packs_are_those_training_would_take(results: Path) -> None:
    recipe = TrainRecipe.model_validate(read_json(results / "recipe.yaml"))
    assert recipe.model is not None
    data = open_run_data(recipe, recipe.model)
    order = PackOrder(data.train_packs.num_packs, recipe.seed)
    batch = recipe.training.global_batch_size
    lengths = [
        [
            data.train.lengths[document]
            for place in range(step * batch, (step + 1) * batch)
            for document in data.train_packs.pack(order.pack_at(place))
        ]
        for step in range(WARMUP, WARMUP + STEPS)
    ]
    run = _run(results, "real")
    assert run["step_tokens"] == [sum(step) for step in lengths]
    num_slots = STEPS * batch * recipe.data.seq_length
    every = np.concatenate(lengths)
    model = ModelConfig.model_validate(run["model"])
    assert run["flops"] == pytest.approx(model_flops(model, every, num_slots))


def test_a_baseline_that_did_something_else_is_refused(results: Path) -> None:
    given = ["--synthetic", "--baseline", str(results / "real.json")]
    done = _bench(results, *given, "--output", str(results / "none.json"), check=False)
    assert done.returncode == 2
    assert "another data (real, not synthetic)" in done.stderr and "Traceback" not in done.stderr
    assert not (results / "none.json").exists()
    report = _module("throughput_report")
    with pytest.raises(DsmError, match=r"is no result of bench_throughput\.py"):
        report.read_run(results / "recipe.yaml")


def test_the_table_has_a_line_a_run_and_the_plot_is_an_image(results: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "throughput_table.py")]
    command += [str(results / f"{name}.json") for name in ("two", "one")]
    markdown, image = results / "table.md", results / "scaling.png"
    command += ["--markdown", str(markdown), "--plot", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in markdown.read_text().splitlines()]
    assert [line[:4] for line in lines[2:]] == [
        ["DP1", "1", "1", "4"],
        ["TP2 DP1", "1", "2", "4"],
    ]
    assert lines[2][5] == f"{_run(results, 'one')['tokens_per_s']:,.0f}"
    assert all(len(line) == len(lines[0]) for line in lines[2:])
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 10_000


def test_synthetic_lengths_are_distributed_like_the_real_ones() -> None:
    data = _module("throughput_data")
    lengths = data.draw_lengths(
        np.random.Generator(np.random.PCG64(1)), num_tokens=2_000_000, longest=4096
    )
    assert lengths.sum() >= 2_000_000
    found = np.quantile(lengths, data.SHARES[1:-2])
    assert found == pytest.approx(data.QUANTILES[1:-2], rel=0.05)
    short = data.draw_lengths(
        np.random.Generator(np.random.PCG64(1)), num_tokens=100_000, longest=256
    )
    assert short.max() == 256 and short.min() >= data.QUANTILES[0]


def _bench(
    folder: Path, *arguments: str, ranks: int = 1, check: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(BENCH), str(folder / "recipe.yaml"), *arguments]
    command += ["--steps", str(STEPS), "--warmup", str(WARMUP), "--peak-flops", str(PEAK)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def _run(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / f"{name}.json")["throughput"]


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
