"""The plan's parameters, memory and communication are what ranks hold and send, counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.planning.activations import layer_activations, micro_batch
from dsm_engine.planning.communication import layout_sizes, micro_batch_traffic, step_traffic
from dsm_engine.planning.memory import memory_by_stage, static_bytes
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
        shard = rank["dp_cp_rank"] if parallel.use_distributed_optimizer else 0
        static = static_bytes(chunks, parallel, precision, shard=shard)
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
        most = static_bytes(chunks, parallel, recipe.training.precision)
        found = max(rank["optimizer"] for rank in counted[name] if rank["pp_rank"] == stage)
        # Each bucket's largest shard may be another rank's: at most, not exactly.
        assert found <= most.optimizer
        if sum(len(chunk.buckets) for chunk in chunks) == 1:
            assert found == most.optimizer


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if "pipeline_model_parallel_size" not in LAYOUTS[name]]
)
def test_a_layers_activations_are_what_autograd_keeps_on_every_rank(
    name: str, counted: dict[str, list[dict[str, Any]]], recipes: dict[str, TrainRecipe]
) -> None:
    """To the byte; under CP attention on a CPU keeps masks beside that, which a GPU has not."""
    recipe = recipes[name]
    model, parallel = recipe.model, recipe.parallel
    assert model is not None
    batch = micro_batch(parallel, recipe.training.precision, recipe.data.seq_length)
    planned = layer_activations(
        model, parallel, batch, recompute=parallel.recompute, on_cpu=True
    ).total
    for rank in counted[name]:
        masks = _mask_numel(rank["documents"], rank["cp_rank"], parallel.context_parallel_size)
        assert rank["layer"] == planned + masks * batch.element


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if "context_parallel_size" not in LAYOUTS[name]]
)
def test_the_peak_of_a_steps_passes_is_the_planned_one_within_a_tenth(
    name: str, counted: dict[str, list[dict[str, Any]]], recipes: dict[str, TrainRecipe]
) -> None:
    """On every rank and stage, micro-batches in flight and messages included."""
    recipe = recipes[name]
    assert recipe.model is not None
    sizes = layout_sizes(recipe.parallel, WORLD_SIZE)
    stages = memory_by_stage(
        recipe.model,
        recipe.parallel,
        recipe.training.precision,
        seq_length=recipe.data.seq_length,
        num_micro_batches=recipe.training.global_batch_size // sizes.dp,
        dp_size=sizes.dp,
        overhead=0,
        on_cpu=True,
    )
    for rank in counted[name]:
        stage = stages[rank["pp_rank"]]
        assert stage.activations + stage.working_set == pytest.approx(rank["peak"], rel=0.1)


def _mask_numel(lengths: list[int], cp_rank: int, cp: int) -> int:
    """A rank's two chunks of each document against all keys before their ends; the first chunk of
    a document needs no mask."""
    if cp == 1:
        return 0
    chunks = [place for place in (cp_rank, 2 * cp - 1 - cp_rank) if place]
    return sum((length // (2 * cp)) ** 2 * (place + 1) for length in lengths for place in chunks)


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
