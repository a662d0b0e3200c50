"""What losses by slice cost a step is measured on the recipe's own steps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsm_engine.recipes import dump_yaml
from dsm_engine.training.config import TrainRecipe

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "bench_slices.py"


def test_steps_with_and_without_losses_by_slice_are_timed_in_turn(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    recipe = TrainRecipe.model_validate(make_recipe(sample_data, tmp_path / "run"))
    path, output = tmp_path / "recipe.yaml", tmp_path / "result.json"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    command = [sys.executable, str(BENCHMARK), str(path), "--repetitions", "3"]
    subprocess.run([*command, "--output", str(output)], check=True, timeout=300)
    by_clock, of_processor = orjson.loads(output.read_bytes())["rows"]
    for row in (by_clock, of_processor):
        assert row["slices"] > 3 and row["n"] > 100
        assert row["ratio"] == pytest.approx(row["baseline_value"] / row["value"])
    # A step of a toy model: what is printed above is the measurement.
    assert of_processor["ratio"] > 0.5
