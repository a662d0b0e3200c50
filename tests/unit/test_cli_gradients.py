"""`dsm verify --gradients` on one rank: it holds, and every fault that is put in is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.cli import main
from tests.gradient_faults import FAULTS


@pytest.fixture
def recipe(tmp_path: Path, sample_data: Path, make_recipe: Any) -> Path:
    return _written(tmp_path, make_recipe(sample_data, tmp_path / "run", data__seq_length=256))


def _written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def _fails(capsys: pytest.CaptureFixture[str], words: list[object], *parts: str) -> str:
    """Runs the command, which ends with 2 and one line with these parts; returns its output."""
    assert main(["verify", "--gradients", *map(str, words)]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("dsm verify: error: ")
    for part in parts:
        assert part in line
    return printed.out


def test_every_split_has_one_gradient_in_both_precisions(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--gradients", str(recipe), "--precision", "both"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert sum(line.startswith("one gradient for every split: holds;") for line in lines) == 2
    assert sum(line.endswith("packs as trained on: holds bit for bit") for line in lines) == 2
    assert sum("packed by best_fit" in line for line in lines) >= 2
    assert not (recipe.parent / "run").exists(), "nothing is written"


@pytest.mark.parametrize(
    "changes",
    [
        ["data.strategy=concat_split", "data.seq_length=64", "data.overlong=drop"],
        ["data.overlong=truncate", "data.seq_length=64", "data.strategy=best_fit"],
        ["data.alignment=8", "data.strategy=balanced"],
        ["model.tie_word_embeddings=true", "parallel.use_distributed_optimizer=false"],
        ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
        ["training.loss_weighting=document", "data.alignment=8"],
        ["training.loss_weighting=example", "data.strategy=concat_split", "data.overlong=drop"],
        ["parallel.recompute=full", "training.global_batch_size=1"],
    ],
)
def test_it_holds_for_every_way_to_pack_and_to_keep_gradients(
    recipe: Path, capsys: pytest.CaptureFixture[str], changes: list[str]
) -> None:
    assert main(["verify", "--gradients", str(recipe), *changes]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("average per micro-batch", "packs as trained on: the gradient of "),
        ("micro-batch dropped", "packs as trained on: "),
        ("labels shifted", "packs as trained on: the loss sum "),
        ("document counted twice", "packs as trained on: the loss sum "),
        ("pack read twice", "packs as trained on: "),
        ("noise", "two runs of the packs as trained on differ in the loss sum: the step is not"),
    ],
)
def test_every_fault_of_the_step_or_the_stream_is_found(
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    part: str,
) -> None:
    FAULTS[fault](monkeypatch.setattr)
    printed = _fails(capsys, [recipe], f"in fp32: {part}")
    assert "one gradient for every split: FAILS" in printed


def test_pieces_of_an_example_that_weigh_apart_are_found(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = ["data.strategy=concat_split", "data.seq_length=64", "data.overlong=drop"]
    words = [recipe, *packs, "training.loss_weighting=example", "training.global_batch_size=24"]
    words += ["--packs", 24]
    assert main(["verify", "--gradients", *map(str, words)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    FAULTS["pieces weighed apart"](monkeypatch.setattr)
    _fails(capsys, words, "in the divisor were counted, the documents have ")


def test_a_wrong_count_is_found_whatever_the_gradient(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS["micro-batch dropped"](monkeypatch.setattr)
    _fails(capsys, [recipe], "supervised tokens were counted, the documents have ")


def test_a_mean_of_means_is_found_in_bf16_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS["average per micro-batch"](monkeypatch.setattr)
    _fails(capsys, [recipe, "--precision", "bf16"], "in bf16: ", ": the gradient of ")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--packs", 0], "--packs 0: the recipe's global batch has 1 to 4 packs"),
        (["--packs", 5], "--packs 5: the recipe's global batch has 1 to 4 packs"),
        (["--documents", 2], "--documents goes with --isolation RECIPE"),
        (["--forward-only"], "--forward-only goes with --isolation RECIPE"),
        (["--isolation", "x"], "--isolation and --gradients are two runs: give one of them"),
        (["PREFIX"], "PREFIX: --gradients RECIPE takes the dataset from the recipe"),
        (["--dataset", "x"], "--dataset goes with a pack index, not with --gradients"),
        (["parallel.tensor_model_parallel_size=2"], "the layout does not fit"),
        (["data.train=nothing"], "nothing.manifest.json"),
        (["model.init_method_std=3e38"], "in fp32: the loss is nan: nothing is shown"),
    ],
)
def test_faults_of_the_recipe_or_the_options_are_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], words: list[object], part: str
) -> None:
    _fails(capsys, [recipe, *words], part)


def test_without_a_recipe_the_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "a", "--precision", "fp32"]) == 2
    assert "--precision goes with --isolation or --gradients RECIPE" in capsys.readouterr().err
