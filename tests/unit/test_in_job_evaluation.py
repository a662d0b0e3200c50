"""`dsm train` evaluates the model it trains, by a recipe of `dsm evaluate`."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.cli import main
from dsm_engine.recipes import dump_yaml
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.metrics import read_metrics

PROBLEMS = [{"id": str(i), "question": f"{i} + 1?", "answer": str(i + 1)} for i in range(5)]


def _write_recipes(
    folder: Path, sample_data: Path, make_recipe: Any, **evaluation: Any
) -> tuple[Path, Path]:
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS), encoding="utf-8")
    evaluate = folder / "evaluate.yaml"
    evaluate.write_text(
        f"benchmarks: [{{path: {problems}, limit: 4}}]\nmodes: [cot]\nmax_new_tokens: 4\n",
        encoding="utf-8",
    )
    recipe = make_recipe(sample_data, folder / "run", training__steps=3)
    recipe["evaluation"] = {"recipe": str(evaluate), "every": 2, **evaluation}
    path = folder / "train.yaml"
    path.write_text(dump_yaml(TrainRecipe.model_validate(recipe)), encoding="utf-8")
    return path, folder / "run"


def test_training_answers_the_benchmarks_in_between(
    tmp_path: Path, sample_data: Path, make_recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = _write_recipes(
        tmp_path, sample_data, make_recipe, max_problems=3, keep_weights=True
    )
    assert main(["train", str(path)]) == 0
    lines = [line for line in read_metrics(run) if line["kind"] == "evaluation"]
    assert [line["step"] for line in lines] == [2, 3]
    for line in lines:
        folder = run / "evaluation" / f"step_{line['step']:08d}"
        summary = json.loads((folder / "report" / "summary.json").read_text(encoding="utf-8"))
        result = summary["benchmarks"]["problems"]["cot"]
        assert result["n"] == 3
        assert line["scores"] == {"problems/cot": result["accuracy"]}
        predictions = (folder / "report" / "predictions.jsonl").read_text(encoding="utf-8")
        assert [json.loads(row)["num_tokens"] for row in predictions.splitlines()] == [4, 4, 4]
        assert (folder / "model" / "config.json").exists(), "asked to keep the weights"
    assert "step 2: evaluation problems/cot 0.0%" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["evaluate.yaml", "problems.jsonl"])
def test_a_benchmark_that_is_missing_is_found_before_training(
    tmp_path: Path,
    sample_data: Path,
    make_recipe: Any,
    missing: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, run = _write_recipes(tmp_path, sample_data, make_recipe)
    (tmp_path / missing).unlink()
    assert main(["train", str(path)]) == 2
    error = capsys.readouterr().err
    assert missing in error and error.count("\n") == 1
    assert not run.exists()
