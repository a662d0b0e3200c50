"""Every layout gives the one-process run; a resumed run is the uninterrupted one, bitwise."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.loop import train
from tests.layout_runs import LAYOUTS, lines, relative_l2, run_jobs, weights

pytestmark = pytest.mark.multi

TIED = ("tp2", "pp2", "pp2_interleaved")
BF16 = ("tp2_sp", "pp2_interleaved", "dp2", "dp2_overlap", "cp2")
RESUMED = ("tp2", "pp2_interleaved", "dp2", "dp2_overlap", "cp2")
RECOMPUTED = ("selective", "full")
STEPS, LR = 5, 5e-5
LOSS_BOUND, PARAMETER_BOUND = 1e-6, 1e-5  # relative, fp32
FP32 = [*LAYOUTS, *(f"{name}_tied" for name in TIED), *RECOMPUTED]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> Iterator[Path]:
    """A run of every layout, and the one-process runs, which begin with `one`.

    With DSM_TABLES=FOLDER the table of docs/parallelism.md goes to FOLDER/parity.json.
    """
    folder = tmp_path_factory.mktemp("layouts")
    by_ranks: dict[int, list[dict[str, Any]]] = {}

    def add(name: str, layout: str, *, resume: bool = False, **changes: Any) -> None:
        num_ranks, parallel = LAYOUTS[layout]
        recipe = _recipe(make_recipe, sample_data, folder / name, parallel=parallel, **changes)
        by_ranks.setdefault(num_ranks, []).append({"recipe": recipe, "resume": resume})

    for layout in LAYOUTS:
        add(layout, layout)
    for layout in TIED:
        add(f"{layout}_tied", layout, model__tie_word_embeddings=True)
    for layout in BF16:
        add(f"{layout}_bf16", layout, training__precision="bf16")
    for layout in RESUMED:
        add(f"{layout}_resumed", layout, training__steps=3)
        add(f"{layout}_resumed", layout, resume=True)
    add("dp2_bf16_resumed", "dp2_overlap", training__precision="bf16", training__steps=3)
    add("dp2_bf16_resumed", "dp2_overlap", training__precision="bf16", resume=True)
    for num_ranks, jobs in by_ranks.items():
        run_jobs(folder, num_ranks, jobs)
    for name, changes in {
        "one": {},
        "one_tied": {"model__tie_word_embeddings": True},
        "one_bf16": {"training__precision": "bf16"},
        **{name: {"parallel": {"recompute": name}} for name in RECOMPUTED},
    }.items():
        recipe = _recipe(make_recipe, sample_data, folder / name, **changes)
        recipe["logging"]["save_initial"] = True
        train(TrainRecipe.model_validate(recipe))
    yield folder
    if "DSM_TABLES" in os.environ:
        table = {name: _distances(folder, name) for name in (*FP32, *(f"{n}_bf16" for n in BF16))}
        path = Path(os.environ["DSM_TABLES"]) / "parity.json"
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", FP32)
def test_loss_and_gradient_norm_equal_the_one_process_run(runs: Path, name: str) -> None:
    expected, found = lines(_baseline(runs, name), "step"), lines(runs / name, "step")
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for mine, other in zip(found, expected, strict=True):
        for key in ("num_supervised", "num_tokens", "consumed_samples", "lr"):
            assert mine[key] == other[key], key
        assert mine["loss"] == pytest.approx(other["loss"], rel=LOSS_BOUND)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=LOSS_BOUND)


@pytest.mark.parametrize("name", FP32)
def test_every_parameter_equals_that_of_the_one_process_run(runs: Path, name: str) -> None:
    found, expected = weights(runs / name), weights(_baseline(runs, name))
    initial = weights(_baseline(runs, name) / "checkpoints" / "step_00000000")
    assert found.keys() == expected.keys() == initial.keys()
    for key, parameter in expected.items():
        assert relative_l2(found[key], parameter) <= PARAMETER_BOUND, key
        assert relative_l2(initial[key], parameter) > 10 * PARAMETER_BOUND, f"{key} has not moved"


@pytest.mark.parametrize("name", FP32)
def test_validation_loss_equals_the_one_process_run(runs: Path, name: str) -> None:
    baseline = _baseline(runs, name)
    expected, found = (
        [line["loss"] for line in lines(run, "validation")] for run in (baseline, runs / name)
    )
    assert len(found) == len(expected) == 2
    assert found == pytest.approx(expected, rel=LOSS_BOUND)


@pytest.mark.parametrize("layout", BF16)
def test_bf16_layouts_equal_the_one_process_run_within_its_roundings(
    runs: Path, layout: str
) -> None:
    name = f"{layout}_bf16"
    distance = _distances(runs, name)
    # Other sums round other activations, by 2^-9 of them each; the loss is a mean over about a
    # thousand tokens, whose roundings are independent.
    assert distance["loss"] <= 2.0**-9
    # AdamW moves a weight by about lr a step whatever its gradient's size, so that where a
    # gradient is rounding two runs part by 2 * steps * lr at most; the weights are rounded to bf16
    # once more, 2^-9 of each. No norm of a matrix is below 0.01 * sqrt(its size) here.
    for key, value in weights(runs / name).items():
        other = weights(runs / "one_bf16")[key]
        rms = float(other.double().square().mean().sqrt())
        assert relative_l2(value, other) <= 2 * STEPS * LR / rms + 2.0**-9, key
    if layout in ("tp2_sp", "cp2"):  # the others add up the same activations
        assert distance["loss"] > 0, "nothing was rounded"
    fp32 = lines(runs / "one", "step")
    for mine, other in zip(lines(runs / name, "step"), fp32, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=5e-3)


@pytest.mark.parametrize("name", [*RESUMED, "dp2_bf16"])
def test_resumed_training_equals_uninterrupted_training_bitwise(runs: Path, name: str) -> None:
    whole = runs / ("dp2_overlap_bf16" if name == "dp2_bf16" else name)
    resumed = runs / f"{name}_resumed"
    for mine, other in zip(lines(resumed, "step"), lines(whole, "step"), strict=True):
        for key in ("step", "loss", "grad_norm", "lr", "num_supervised", "consumed_samples"):
            assert mine[key] == other[key], key
    mine, other = weights(resumed), weights(whole)
    assert all(torch.equal(mine[key], other[key]) for key in other)


def _recipe(make_recipe: Any, data: Path, run: Path, **changes: Any) -> dict[str, Any]:
    shape = {"model__num_layers": 4, "data__alignment": 4, "training__global_batch_size": 8}
    training = {"training__steps": STEPS, "training__lr": LR}
    return make_recipe(data, run, **{**shape, **training, **changes})


def _baseline(runs: Path, name: str) -> Path:
    kind = name.rpartition("_")[2]
    return runs / (f"one_{kind}" if kind in ("tied", "bf16") else "one")


def _distances(runs: Path, name: str) -> dict[str, float]:
    """Largest relative difference of losses and gradient norms, and of a parameter in L2."""
    baseline = _baseline(runs, name)
    pairs = list(zip(lines(runs / name, "step"), lines(baseline, "step"), strict=True))
    distances = {
        key: max(abs(mine[key] / other[key] - 1) for mine, other in pairs)
        for key in ("loss", "grad_norm")
    }
    found, expected = weights(runs / name), weights(baseline)
    distances["parameter"] = max(relative_l2(found[key], expected[key]) for key in expected)
    return distances
