"""The quickstart's frame: what it refuses, what it sums up. CI runs the whole of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsm_engine.cli import main
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sample_set import write_sample_set
from dsm_engine.errors import DsmError
from dsm_engine.evaluation.evaluate import EvaluateRecipe
from dsm_engine.files import write_json
from dsm_engine.quickstart.run import RECIPES, quickstart
from dsm_engine.quickstart.summary import summarize
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.loop import train


def test_a_folder_that_is_not_a_quickstarts_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work", encoding="utf-8")
    assert main(["quickstart", "--output", str(tmp_path)]) == 2
    assert precious.read_text(encoding="utf-8") == "years of work"
    assert list(tmp_path.iterdir()) == [precious]


def test_a_step_that_fails_ends_it_with_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsm_engine.quickstart.run as module

    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=lambda *_, **__: failed))
    said: list[str] = []
    with pytest.raises(DsmError, match="ended with exit code 1"):
        quickstart(tmp_path / "q", seed=1, say=said.append)
    assert any(line.startswith("$ dsm preprocess") for line in said)
    assert not (tmp_path / "q" / "summary.json").exists()


def test_the_recipes_of_the_package_are_valid_and_fit_each_other() -> None:
    preprocess = load_recipe(RECIPES / "preprocess.yaml", [], PreprocessRecipe)
    recipe = load_recipe(RECIPES / "train.yaml", [], TrainRecipe)
    evaluate = load_recipe(RECIPES / "evaluate.yaml", [], EvaluateRecipe)
    assert recipe.data.train == preprocess.output
    assert recipe.data.tokenizer == preprocess.tokenizer
    assert preprocess.max_tokens <= recipe.data.seq_length
    assert recipe.logging.save_initial, "accuracy_before is that of step 0"
    assert evaluate.template == preprocess.template
    assert set(evaluate.modes) == {"cot", "tool"}


def test_every_recipe_in_configs_is_valid() -> None:
    configs = Path(__file__).resolve().parent.parent.parent / "configs"
    found = sorted(configs.rglob("*.yaml"))
    assert len(found) >= 5
    for path in found:
        if path.parent.name == "data":
            load_recipe(path, [], PreprocessRecipe)
        elif path.name.startswith("evaluate"):
            load_recipe(path, [], EvaluateRecipe)
        else:
            load_recipe(path, [], TrainRecipe)


def test_the_summary_reads_back_what_the_commands_wrote(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    train(TrainRecipe.model_validate(make_recipe(sample_data, tmp_path / "train")))
    for when, tool in (("before", None), ("after", {"n": 8, "accuracy": 0.75})):
        modes = {"cot": {"n": 8, "accuracy": 0.125}, "tool": tool}
        path = tmp_path / f"evaluation_{when}" / "summary.json"
        write_json(path, {"benchmarks": {"held_out": modes}})
    report = write_sample_set(
        tmp_path / "data", num_problems=8, num_held_out=8, num_validation=8, seed=1
    )
    summary = summarize(tmp_path, report, {"train": 1.0}, 2.5)
    assert summary["accuracy_before"] == {"cot": 0.125, "tool": None}
    assert summary["accuracy_after"] == {"cot": 0.125, "tool": 0.75}
    assert 0 < summary["loss_last"] < summary["loss_first"] < 10
    assert 0.5 < summary["pack_fill"] <= 1
    assert summary["tokens_per_s"] > 0 and summary["seconds_total"] == 2.5
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
