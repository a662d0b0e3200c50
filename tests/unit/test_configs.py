"""The recipes of models: shapes and parameters as published, layouts that fit their worlds."""

import re
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.cli import main
from dsm_engine.model.config import ModelConfig, to_hf_config
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.parameters import parameters_by_component, stage_chunks
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import TrainRecipe

# Parameters of the published weights, as their safetensors' index or model card has them.
PUBLISHED = {
    "deepseekmath_instruct_7b": 6_910_365_696,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "codellama_34b": 33_743_970_304,
    "llama2_70b": 68_976_648_192,
    "llama3_1_70b": 70_553_706_496,
}
REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"


def _train_recipes() -> list[Path]:
    return [
        path
        for path in sorted(CONFIGS.glob("*.yaml"))
        if re.search(r"^(training|extends):", path.read_text(encoding="utf-8"), re.M)
    ]


def _model(name: str) -> ModelConfig:
    model = load_recipe(CONFIGS / f"{name}.yaml", [], TrainRecipe).model
    assert model is not None
    return model


def test_the_recipes_of_models_are_those_that_are_checked() -> None:
    names = {path.stem for path in _train_recipes()}
    assert set(PUBLISHED) <= names
    # The others take a small model's shape from its weights.
    assert names - set(PUBLISHED) <= {"gsm8k_smollm2"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_as_many_parameters_as_the_published_weights(name: str) -> None:
    model = _model(name)
    assert model.num_parameters == PUBLISHED[name]
    parallel = load_recipe(CONFIGS / f"{name}.yaml", [], TrainRecipe).parallel
    whole = parallel.model_copy(
        update={
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "virtual_pipeline_model_parallel_size": 1,
        }
    )
    (chunk,) = stage_chunks(model, whole, stage=0, dp_cp_size=1)
    assert sum(parameters_by_component(chunk.parameters).values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_builds_a_model_of_the_recipes_shape_with_as_many(name: str) -> None:
    """On the meta device: nothing is allocated."""
    import torch
    import transformers

    values = to_hf_config(_model(name), dtype="bfloat16", bos_id=None, eos_id=None)
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    assert sum(parameter.numel() for parameter in hf.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_megatrons_model_of_the_recipes_shape_has_the_planned_parameters(
    name: str, one_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built as for training, on the meta device: each parameter, in Megatron's order."""
    import dataclasses

    import torch

    from dsm_engine.model.gpt import build_chunks

    meta = torch.device("meta")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: meta)
    model = _model(name)
    context = dataclasses.replace(one_rank, device=meta)
    with meta:
        (gpt,) = build_chunks(model, ParallelConfig(), "bf16", context, attention="split")
    (chunk,) = stage_chunks(model, ParallelConfig(), stage=0, dp_cp_size=1)
    found = [parameter.numel() for parameter in gpt.parameters()]
    assert found == [parameter.numel for parameter in chunk.parameters]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plan_a_recipe_names_fits_its_gpus_without_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    command = re.search(r"^#   dsm (plan .*)$", text, re.M)
    assert command is not None
    monkeypatch.chdir(REPOSITORY)
    assert main(command[1].split()) == 0
    output = capsys.readouterr().out
    assert "GiB: fits" in output
    assert "warning" not in output


def test_the_papers_run_is_the_papers() -> None:
    recipe = load_recipe(CONFIGS / "deepseekmath_instruct_7b.yaml", [], TrainRecipe)
    training, data = recipe.training, recipe.data
    found: dict[str, Any] = {
        "steps": training.steps,
        "packs": training.global_batch_size,
        "lr": training.lr,
        "warm-up": training.warmup_steps,
        "context": data.seq_length,
        "strategy": data.strategy,
    }
    assert found == {
        "steps": 500,
        "packs": 256,
        "lr": 5e-5,
        "warm-up": 0,
        "context": 4096,
        "strategy": "random",
    }
    slots = training.steps * training.global_batch_size * data.seq_length
    assert round(slots / 776_000) == 676  # slots an example, in one pass
