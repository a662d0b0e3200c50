"""What a job of a recipe begins with: its model, a layout that fits, ranks that agree."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from dsm_engine.errors import DsmError
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import initialize_weights
from dsm_engine.model.hf_weights import load_hf_weights, read_hf_config
from dsm_engine.parallel.config import Workload, layout_mistakes
from dsm_engine.parallel.context import ParallelContext, rank_memory, world_size
from dsm_engine.planning.memory import memory_by_stage
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.run_data import RunData


def model_of(recipe: TrainRecipe) -> ModelConfig:
    """The shape of the recipe's model. Raises DsmError where its weights have another."""
    if recipe.initialize_from is None:
        assert recipe.model is not None  # the recipe's own check
        return recipe.model
    weights = read_hf_config(recipe.initialize_from)
    if recipe.model is None:
        return weights
    differences = recipe.model.differences(weights)
    if differences:
        raise DsmError(
            f"{recipe.initialize_from}: has another shape than the recipe's model "
            f"({'; '.join(differences)}); leave model: out to take the weights' own"
        )
    return recipe.model


def refuse_layout(recipe: TrainRecipe, model: ModelConfig, data: RunData) -> None:
    """Raises DsmError with every reason why the model and the data do not fit the layout, or what
    a rank holds does not fit its memory.

    Before the job is joined: nothing has been started.
    """
    mistakes = layout_mistakes(
        recipe.parallel,
        Workload(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            ffn_hidden_size=model.ffn_hidden_size,
            vocab_size=model.vocab_size,
            seq_length=recipe.data.seq_length,
            alignment=data.train_packs.alignment,
            global_batch_size=recipe.training.global_batch_size,
        ),
        world_size=world_size(),
    )
    if not mistakes:
        mistakes = _memory_mistakes(recipe, model)
    if mistakes:
        raise DsmError("the layout does not fit: " + "; ".join(mistakes))


def _memory_mistakes(recipe: TrainRecipe, model: ModelConfig) -> list[str]:
    """Where weights, gradients and optimizer states alone are more than the device has; what
    activations take is an estimate, and `dsm plan` gives it."""
    dp_size = world_size() // recipe.parallel.model_parallel_size
    stages = memory_by_stage(
        model,
        recipe.parallel,
        recipe.training.precision,
        seq_length=recipe.data.seq_length,
        num_micro_batches=recipe.training.global_batch_size // dp_size,
        dp_size=dp_size,
        overhead=0,
    )
    stage = max(stages, key=lambda stage: stage.static)
    available = rank_memory()
    if stage.static <= available:
        return []
    return [
        f"a rank of pipeline stage {stage.stage} holds {stage.static / 2**30:.1f} GiB of weights, "
        f"gradients and optimizer states, and has {available / 2**30:.1f} GiB of memory; "
        f"dsm plan RECIPE --sweep ranks the layouts that fit"
    ]


def refuse_disagreement(recipe: TrainRecipe, stream: dict[str, Any]) -> None:
    """Raises DsmError, on every rank, where ranks have read different recipes or data.

    Machines with stale copies would work on different examples without a word. `stream` is
    `RunData.stream_identity`.
    """
    mine = {"recipe": recipe.model_dump(mode="json"), "stream of examples": stream}
    all_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, mine)
    for rank, theirs in enumerate(all_ranks):
        for name, value in theirs.items():
            if value != all_ranks[0][name]:
                raise DsmError(
                    f"rank {rank} has another {name} than rank 0; give every machine the same "
                    f"recipe, datasets and pack index"
                )


def fill_weights(
    chunks: Sequence[GPTModel], recipe: TrainRecipe, model: ModelConfig, context: ParallelContext
) -> None:
    """The weights the recipe starts from: those of `initialize_from`, or fresh ones."""
    if recipe.initialize_from is not None:
        load_hf_weights(chunks, model, context, recipe.initialize_from)
    else:
        initialize_weights(chunks, model, context, seed=recipe.seed)
