"""The plan's parameters, memory and communication are what ranks hold and send, counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.planning.communication import layout_sizes, micro_batch_traffic, step_traffic
from dsm_engine.planning.memory import static_bytes
from dsm_engine.planning.parameters import stage_chunks
from dsm_engine.training.config import TrainRecipe

pytestmark = pytest.mark.multi

WORKER = Path(__file__).with_name("plan_worker.py")
WORLD_SIZE = 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp4": {},
    "dp4_replicated": {"use_distributed_optimizer": False},
    "dp4_overlap": {"overlap_grad_reduce": True, "overlap_param_gather": True},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2_selective": {"tensor_model_parallel_size": 2, "recompute": "selective"},
    "tp2_sp_full": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "recompute": "full",
    },
    "tp2_sp_pp2": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "pipeline_model_parallel_size": 2,
    },
    "pp2_interleaved": {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
    },
    "pp2_tied": {"pipeline_model_parallel_size": 2},
    "pp4": {"pipeline_model_parallel_size": 4},
    "cp2": {"context_parallel_size": 2},
    "cp2_tp2_sp_selective": {
        "context_parallel_size": 2,
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "recompute": "selective",
    },
}
# Kinds of the plan by what the worker calls them.
NAMES = {
    "tp_all_reduce": "tp all_reduce",
    "sp_all_gather": "tp all_gather",
    "sp_reduce_scatter": "tp reduce_scatter",
    "cp_all_gather": "cp all_gather",
    "cp_reduce_scatter": "cp reduce_scatter",
    "pp_send": "pp send",
    "dp_all_reduce": "dp all_reduce",
    "dp_reduce_scatter": "dp reduce_scatter",
    "dp_all_gather": "dp all_gather",
    "tied_embedding_all_reduce": "embedding all_reduce",
}


def _recipe(make_recipe: Any, data: Path, name: str, precision: str) -> dict[str, Any]:
    parallel = LAYOUTS[name]
    recipe = make_recipe(data, Path("unused"), parallel=parallel, training__precision=precision)
    recipe["model"] |= {"num_layers": 4, "tie_word_embeddings": name.endswith("_tied")}
    recipe["data"]["alignment"] = 2 * parallel.get("context_parallel_size", 1)
    return recipe


def _case(name: str) -> str:
    """Half of the layouts in bf16, which has main weights."""
    return "bf16" if list(LAYOUTS).index(name) % 2 else "fp32"


@pytest.fixture(scope="module")
def counted(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> dict[str, list[dict[str, Any]]]:
    """What each of four ranks counted, by layout: one launch."""
    folder = tmp_path_factory.mktemp("plan")
    jobs = [
        {
            "recipe": _recipe(make_recipe, sample_data, name, _case(name)),
            "output": str(folder / name),
        }
        for name in LAYOUTS
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, str(WORLD_SIZE), str(WORKER), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [
            json.loads((folder / f"{name}.{rank}.json").read_text(encoding="utf-8"))
            for rank in range(WORLD_SIZE)
        ]
        for name in LAYOUTS
    }


@pytest.fixture
def recipes(sample_data: Path, make_recipe: Any) -> dict[str, TrainRecipe]:
    return {
        name: TrainRecipe.model_validate(_recipe(make_recipe, sample_data, name, _case(name)))
        for name in LAYOUTS
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_parameters_and_static_memory_are_those_of_every_rank_exactly(
    name: str, counted: dict[str, list[dict[str, Any]]], recipes: dict[str, TrainRecipe]
) -> None:
    recipe = recipes[name]
    model, parallel, precision = recipe.model, recipe.parallel, recipe.training.precision
    assert model is not None
    sizes = layout_sizes(parallel, WORLD_SIZE)
    for rank in counted[name]:
        chunks = stage_chunks(model, parallel, stage=rank["pp_rank"], dp_cp_size=sizes.dp_cp)
        static = static_bytes(
            chunks,
            parallel,
            precision,
            dp_cp_size=sizes.dp_cp,
            shard=rank["dp_cp_rank"],
        )
        assert sum(chunk.numel for chunk in chunks) == rank["numel"]
        assert static.weights == rank["weights"]
        assert static.gradients == rank["gradients"]
        assert static.optimizer == rank["optimizer"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rank_with_most_is_the_one_that_is_reported(
    name: str, counted: dict[str, list[dict[str, Any]]], recipes: dict[str, TrainRecipe]
) -> None:
    recipe = recipes[name]
    model, parallel = recipe.model, recipe.parallel
    assert model is not None
    sizes = layout_sizes(parallel, WORLD_SIZE)
    for stage in range(sizes.pp):
        chunks = stage_chunks(model, parallel, stage=stage, dp_cp_size=sizes.dp_cp)
        most = static_bytes(chunks, parallel, recipe.training.precision, dp_cp_size=sizes.dp_cp)
        found = max(rank["optimizer"] for rank in counted[name] if rank["pp_rank"] == stage)
        # Each bucket's largest shard may be another rank's: at most, not exactly.
        assert found <= most.optimizer
        if sum(len(chunk.buckets) for chunk in chunks) == 1:
            assert found == most.optimizer


@pytest.mark.parametrize("name", LAYOUTS)
def test_communication_is_what_every_rank_sends_exactly(
    name: str, counted: dict[str, list[dict[str, Any]]], recipes: dict[str, TrainRecipe]
) -> None:
    recipe = recipes[name]
    model, parallel, precision = recipe.model, recipe.parallel, recipe.training.precision
    assert model is not None
    sizes = layout_sizes(parallel, WORLD_SIZE)
    num_micro_batches = recipe.training.global_batch_size // sizes.dp
    for rank in counted[name]:
        stage = rank["pp_rank"]
        chunks = stage_chunks(model, parallel, stage=stage, dp_cp_size=sizes.dp_cp)
        planned: dict[str, float] = {}
        for part in step_traffic(parallel, precision, sizes, chunks):
            planned[NAMES[part.kind]] = planned.get(NAMES[part.kind], 0) + part.payload
        for part in micro_batch_traffic(
            model, parallel, precision, sizes, seq_length=recipe.data.seq_length, stage=stage
        ):
            payload = num_micro_batches * part.payload
            planned[NAMES[part.kind]] = planned.get(NAMES[part.kind], 0) + payload
        assert planned == rank["payloads"]
