"""Losses by slice, weighted losses and evaluations in the job: the same in every layout."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics

pytestmark = pytest.mark.multi

WORKER = Path(__file__).with_name("metrics_worker.py")
STEPS = 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"overlap_grad_reduce": True, "overlap_param_gather": True},
    "tp2_sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
}
# Packs and weights under which examples are cut, and pieces of one stand on several ranks.
WEIGHTINGS = ["token", "example"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """Runs of one process, and of two ranks in one launch."""
    folder = tmp_path_factory.mktemp("metrics")

    def recipe(name: str, weighting: str, parallel: dict[str, Any]) -> dict[str, Any]:
        values = make_recipe(
            sample_data, folder / f"{name}_{weighting}", training__steps=STEPS, parallel=parallel
        )
        values["training"] |= {"loss_weighting": weighting, "global_batch_size": 16}
        values["data"] |= {"strategy": "concat_split", "alignment": 4, "seq_length": 240}
        if weighting == "token":
            values["evaluation"] = {"recipe": "unused.yaml", "every": 1, "timeout_s": 60}
        return values

    for weighting in WEIGHTINGS:
        alone = recipe("alone", weighting, {})
        alone.pop("evaluation", None)
        train(TrainRecipe.model_validate(alone))
    recipes = [recipe(name, w, parallel) for name, parallel in LAYOUTS.items() for w in WEIGHTINGS]
    (folder / "recipes.json").write_text(json.dumps(recipes), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", str(WORKER), str(folder / "recipes.json")],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_by_slice_and_their_weights_do_not_depend_on_the_layout(
    runs: Path, layout: str, weighting: str
) -> None:
    expected, found = (
        [
            line
            for line in read_metrics(runs / f"{name}_{weighting}")
            if line["kind"] in ("step", "validation")
        ]
        for name in ("alone", layout)
    )
    assert [line["kind"] for line in found] == ["validation", "step", "step", "validation"]
    for mine, other in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert mine["slices"].keys() == other["slices"].keys()
        for name, values in other["slices"].items():
            assert mine["slices"][name]["tokens"] == values["tokens"], name
            assert mine["slices"][name]["loss"] == pytest.approx(values["loss"], rel=1e-6), name
        if mine["kind"] == "step":
            assert mine["num_supervised"] == other["num_supervised"]
            assert mine["token_loss"] == pytest.approx(other["token_loss"], rel=1e-6)
            assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    if weighting == "example":
        assert abs(expected[1]["loss"] - expected[1]["token_loss"]) > 1e-4, "weights are idle"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_evaluation_in_the_job_gets_the_whole_models_weights(
    runs: Path, tmp_path: Path, layout: str
) -> None:
    run = runs / f"{layout}_token"
    lines = [line for line in read_metrics(run) if line["kind"] == "evaluation"]
    assert [line["step"] for line in lines] == [1, STEPS]
    for line in lines:
        assert (line["scores"], line["error"]) == ({"toy/cot": 0.25}, None)
        assert 0.2 < line["seconds"] < 60
    convert(run, tmp_path / "hf")
    report = _report(run, STEPS)
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert sorted(path.name for path in report.iterdir()) == names
    for name in names:
        assert (report / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_evaluation_before_a_checkpoint_has_the_newest_weights(runs: Path, layout: str) -> None:
    """Of dp2, whose ranks gather them with the next forward pass only."""
    from safetensors.torch import load_file

    weights = load_file(_report(runs / f"{layout}_token", 1) / "model.safetensors")
    others = load_file(_report(runs / "tp2_sp_token", 1) / "model.safetensors")
    later = load_file(_report(runs / "tp2_sp_token", STEPS) / "model.safetensors")
    for name, tensor in weights.items():
        scale = others[name].norm()
        assert (tensor - others[name]).norm() < 1e-5 * scale, name
        assert (later[name] - others[name]).norm() > 1e-4 * scale, "a step moves them"


def _report(run: Path, step: int) -> Path:
    return run / "evaluation" / f"step_{step:08d}" / "report"
