"""Every layout gives the one-process losses; a resumed run is the uninterrupted one, bitwise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.metrics import read_metrics

pytestmark = pytest.mark.multi

WORKER = Path(__file__).with_name("layouts_worker.py")
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "dp2_replicated_optimizer": {"use_distributed_optimizer": False},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2_sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_tied": {"pipeline_model_parallel_size": 2},
    "tp2_tied": {"tensor_model_parallel_size": 2},
}
RESUMED = ["dp2", "dp2_replicated_optimizer", "tp2", "dp2_bf16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """One torchrun launch of two ranks that trains under every layout, and resumes."""
    folder = tmp_path_factory.mktemp("layouts")
    jobs = []
    for name, parallel in LAYOUTS.items():
        recipe = _recipe(make_recipe, sample_data, folder / name, name, parallel=parallel)
        jobs.append({"recipe": recipe, "resume": False})
    bf16 = make_recipe(sample_data, folder / "dp2_bf16", training__precision="bf16")
    jobs.append({"recipe": bf16, "resume": False})
    for name in RESUMED:
        for steps, resume in ((3, False), (5, True)):
            recipe = make_recipe(
                sample_data,
                folder / f"{name}_resumed",
                parallel=LAYOUTS.get(name, {}),
                training__steps=steps,
                training__precision="bf16" if name == "dp2_bf16" else "fp32",
            )
            jobs.append({"recipe": recipe, "resume": resume})
    for name in ("dp2", "tp2"):
        recipe = make_recipe(sample_data, folder / "unused", parallel=LAYOUTS[name])
        jobs.append({"recipe": recipe, "isolation": str(folder / f"{name}_isolation.json")})
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", str(WORKER), str(jobs_file)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> Path:
    """The recipes on one rank, in this process: a folder with runs `untied` and `tied`."""
    from dsm_engine.training.loop import train

    folder = tmp_path_factory.mktemp("one_process")
    for name in ("untied", "tied"):
        recipe = _recipe(make_recipe, sample_data, folder / name, f"one_{name}")
        train(TrainRecipe.model_validate(recipe))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_norm_equal_the_one_process_run(
    runs: Path, one_process: Path, layout: str
) -> None:
    expected, found = _steps(_same_model(one_process, layout)), _steps(runs / layout)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    for mine, other in zip(found, expected, strict=True):
        assert mine["num_supervised"] == other["num_supervised"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.1, "nothing was learned to compare"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validation_loss_equals_the_one_process_run(
    runs: Path, one_process: Path, layout: str
) -> None:
    baseline = _same_model(one_process, layout)
    expected, found = (_validations(run) for run in (baseline, runs / layout))
    assert len(found) == len(expected) == 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_bf16_learns_like_fp32(runs: Path) -> None:
    fp32, bf16 = _steps(runs / "dp2"), _steps(runs / "dp2_bf16")
    # bf16 has 8 bits of mantissa; the loss is a mean over about 1,000 tokens.
    for mine, other in zip(bf16, fp32, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=5e-3)
    assert [line["loss"] for line in bf16] != [line["loss"] for line in fp32]


@pytest.mark.parametrize("layout", ["dp2", "tp2"])
def test_packed_losses_equal_those_of_each_document_alone(runs: Path, layout: str) -> None:
    losses = json.loads((runs / f"{layout}_isolation.json").read_text(encoding="utf-8"))
    assert len(losses["packed"]) == len(losses["unpacked"]) == 512
    assert sum(loss > 0 for loss in losses["packed"]) > 100
    assert losses["packed"] == pytest.approx(losses["unpacked"], abs=1e-6)
    assert losses["packed"] != pytest.approx(losses["merged"], abs=1e-2), "boundaries are idle"


@pytest.mark.parametrize("layout", RESUMED)
def test_resumed_training_equals_uninterrupted_training_bitwise(runs: Path, layout: str) -> None:
    from dsm_engine.training.convert import convert

    whole, resumed = runs / layout, runs / f"{layout}_resumed"
    for mine, other in zip(_steps(resumed), _steps(whole), strict=True):
        for key in ("step", "loss", "grad_norm", "lr", "num_supervised", "consumed_samples"):
            assert mine[key] == other[key], key
    weights = []
    for run in (whole, resumed):
        exported = runs / "exported" / run.name
        convert(run, exported)
        weights.append((exported / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def _recipe(make_recipe: Any, data: Path, run: Path, name: str, **changes: Any) -> dict[str, Any]:
    tied = name.endswith("_tied")
    return make_recipe(data, run, model__tie_word_embeddings=tied, **changes)


def _same_model(one_process: Path, layout: str) -> Path:
    return one_process / ("tied" if layout.endswith("_tied") else "untied")


def _steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] == "step"]


def _validations(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "validation"]
