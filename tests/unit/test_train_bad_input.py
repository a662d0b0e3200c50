"""Faults of a training recipe: each one line that names what, where and what to do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsm_engine.data.pack_file import save_pack_index
from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.files import read_json
from dsm_engine.parallel.config import ParallelConfig, Workload, layout_mistakes
from dsm_engine.recipes import validate_recipe
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.loop import train

Make = Any


@pytest.fixture(scope="module")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Make
) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    recipe = make_recipe(sample_data, run, training__steps=1)
    train(TrainRecipe.model_validate(recipe))
    return run


def _fails(recipe: dict[str, Any], message: str, *, resume: bool = False) -> None:
    with pytest.raises(DsmError, match=message) as error:
        train(validate_recipe(recipe, TrainRecipe, "recipe.yaml"), resume=resume)
    assert "\n" not in str(error.value)


def test_a_missing_dataset_is_named(tmp_path: Path, sample_data: Path, make_recipe: Make) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", data__train=str(tmp_path / "nothing"))
    _fails(recipe, r"nothing\.manifest\.json")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_is_not_the_datasets_is_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    from dsm_engine.data.tokenizers import train_sentencepiece

    other = tmp_path / "other.model"
    texts = (sample_data / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    train_sentencepiece(texts, path=other, vocab_size=400)
    recipe = make_recipe(sample_data, tmp_path / "run", data__tokenizer=str(other))
    _fails(recipe, "was tokenized with another tokenizer")
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", model__vocab_size=128)
    _fails(recipe, r"model\.vocab_size 128 is smaller than the 512 ids")


def test_a_pack_index_of_another_capacity_or_dataset_is_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    lengths = TokenizedDataset(sample_data / "train").lengths
    narrow, foreign = tmp_path / "narrow.packs", tmp_path / "foreign.packs"
    save_pack_index(build_pack_index(lengths, capacity=256, strategy="random", seed=1), narrow)
    save_pack_index(build_pack_index(lengths[1:], capacity=512, strategy="random", seed=1), foreign)
    recipe = make_recipe(sample_data, tmp_path / "run", data__packs=str(narrow))
    _fails(recipe, r"packs hold 256 tokens, data\.seq_length is 512")
    recipe = make_recipe(sample_data, tmp_path / "run", data__packs=str(foreign))
    _fails(recipe, "built for other documents than those of")


def test_documents_longer_than_the_model_is_meant_for_are_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", model__max_position_embeddings=20)
    _fails(recipe, r"the model is meant for 20 \(model\.max_position_embeddings\)")


def test_documents_longer_than_a_pack_are_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", data__seq_length=32)
    _fails(recipe, "32")


def test_every_mistake_of_a_layout_is_in_one_message(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    parallel = {"tensor_model_parallel_size": 3, "context_parallel_size": 2}
    recipe = make_recipe(sample_data, tmp_path / "run", parallel=parallel)
    _fails(
        recipe,
        "the layout does not fit: world size 1 is not divisible by TP x PP x CP 6; "
        "model.num_attention_heads 4 is not divisible by TP 3; .*vocab_size.*"
        "data.alignment 1 is not divisible by 2 x CP 4: .*set data.alignment=4",
    )
    assert not (tmp_path / "run").exists()


WORK = Workload(
    num_layers=6,
    hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=512,
    seq_length=512,
    alignment=1,
    global_batch_size=8,
)


@pytest.mark.parametrize(
    ("parallel", "work", "world_size", "part"),
    [
        ({}, {"global_batch_size": 5}, 2, "global_batch_size 5 is not divisible by the 2 data"),
        ({"tensor_model_parallel_size": 4}, {}, 4, "num_query_groups 2 is not divisible by TP 4"),
        (
            {"tensor_model_parallel_size": 4},
            {"num_attention_heads": 6, "num_query_groups": 4},
            4,
            "num_attention_heads 6 is not divisible by TP 4",
        ),
        ({"pipeline_model_parallel_size": 4}, {}, 4, "num_layers 6 is not divisible by PP 4"),
        ({"sequence_parallel": True}, {}, 1, "sequence_parallel needs tensor"),
        (
            {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            {"seq_length": 511},
            2,
            "seq_length 511 is not divisible by TP 2",
        ),
        ({"context_parallel_size": 2}, {}, 2, "alignment 1 is not divisible by 2 x CP 4"),
        (
            {"context_parallel_size": 2},
            {"alignment": 4, "seq_length": 510},
            2,
            "seq_length 510 is not divisible by 2 x CP 4",
        ),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
            {},
            2,
            "num_layers 6 is not divisible by PP x VP 4",
        ),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3},
            {"global_batch_size": 3},
            2,
            "micro-batches in groups of PP 2: .*is 3, which is not divisible",
        ),
        ({"virtual_pipeline_model_parallel_size": 2}, {}, 1, "needs pipeline_model_parallel_size"),
        ({"overlap_param_gather": True}, {}, 1, "overlap_param_gather needs overlap_grad_reduce"),
        (
            {"optimizer_cpu_offload": True, "use_distributed_optimizer": False},
            {},
            1,
            "optimizer_cpu_offload needs use_distributed_optimizer",
        ),
    ],
)
def test_each_mistake_of_a_layout_is_found(
    parallel: dict[str, Any], work: dict[str, int], world_size: int, part: str
) -> None:
    mistakes = layout_mistakes(
        ParallelConfig.model_validate(parallel), replace(WORK, **work), world_size=world_size
    )
    assert len(mistakes) == 1 and re.search(part, mistakes[0]), mistakes


def test_a_model_that_its_memory_cannot_hold_is_refused_before_it_is_built(
    tmp_path: Path, sample_data: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = {"use_distributed_optimizer": False}
    recipe = make_recipe(sample_data, tmp_path / "run", parallel=parallel, training__steps=1)
    shape = TrainRecipe.model_validate(recipe).model
    assert shape is not None
    needed = 16 * shape.num_parameters  # fp32: weights, gradients and two moments
    memory = "dsm_engine.training.setup.rank_memory"
    monkeypatch.setattr(memory, lambda: needed - 1)
    _fails(recipe, r"stage 0 holds 0\.0 GiB of weights, gradients .*dsm plan RECIPE --sweep")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(memory, lambda: needed)
    assert train(TrainRecipe.model_validate(recipe)).exists()


def test_a_layout_that_fits_has_no_mistakes() -> None:
    parallel = ParallelConfig(
        tensor_model_parallel_size=2,
        sequence_parallel=True,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=3,
        context_parallel_size=2,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
    )
    assert layout_mistakes(parallel, replace(WORK, alignment=4), world_size=16) == []


def test_an_attention_backend_that_this_machine_lacks_is_refused_before_anything_is_written(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    run = tmp_path / "run"
    recipe = make_recipe(sample_data, run, training__attention_backend="te")
    _fails(recipe, "attention backend te: needs a CUDA device; auto takes split")
    recipe = make_recipe(sample_data, run, training__attention_backend="flesh")
    _fails(recipe, "training.attention_backend: input should be 'auto', 'te', .*found 'flesh'")
    assert not run.exists()


def test_the_run_folder_says_which_backend_computed_attention(finished_run: Path) -> None:
    assert read_json(finished_run / "environment.json")["attention"] == "split"


def test_a_run_folder_is_not_written_over(
    finished_run: Path, sample_data: Path, make_recipe: Make
) -> None:
    before = (finished_run / "metrics.jsonl").read_bytes()
    _fails(make_recipe(sample_data, finished_run), "already holds a run; continue it with --resume")
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(
    finished_run: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, finished_run, model__num_layers=3)
    _fails(recipe, "checkpoint of another model .*num_layers: 3, not 2", resume=True)


def test_resuming_on_another_stream_of_examples_is_refused(
    finished_run: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, finished_run, training__global_batch_size=2)
    _fails(recipe, "another stream of examples .*global_batch_size was 4, is 2", resume=True)


def test_a_recipe_without_a_model_says_what_to_give(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    del recipe["model"]
    _fails(recipe, "give the model's shape")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_documents(
    tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", training__lr=1e30, training__steps=4)
    _fails(recipe, r"step \d: .* is (nan|inf); .*highest loss: document \d+ \(.*--replay \d")
