"""Checkpoints: retention, damage, malice, saves beside training and saves that fail; exports that
carry their tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.training.checkpoint import latest_checkpoint
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics


def _train(values: dict[str, Any], *, resume: bool = False, **training: Any) -> Path:
    values["training"].update(training)
    return train(TrainRecipe.model_validate(values), resume=resume)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> dict[str, Any]:
    """The recipe of a run of one step."""
    recipe = make_recipe(sample_data, tmp_path_factory.mktemp("finished") / "run")
    _train(recipe, steps=1)
    return recipe


def test_the_newest_checkpoints_are_kept_even_after_a_run_was_set_back(
    sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    recipe["logging"].update(save_every=1, keep_checkpoints=2, save_initial=True)
    _train(recipe, steps=4)
    folder = tmp_path / "run" / "checkpoints"
    assert _names(folder) == ["step_00000000", "step_00000003", "step_00000004"]
    (folder / "latest").write_text("step_00000003\n")
    recipe["logging"]["save_every"] = 100
    _train(recipe, steps=5, resume=True)
    assert _names(folder) == ["step_00000000", "step_00000004", "step_00000005"]
    (folder / "latest").write_text("step_00000000\n")
    _train(recipe, steps=2, resume=True)
    latest = latest_checkpoint(tmp_path / "run")
    assert latest is not None and latest.name == "step_00000002"
    assert _names(folder) == ["step_00000000", "step_00000002", "step_00000005"]


def test_every_damaged_or_missing_file_of_a_checkpoint_is_named(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = latest_checkpoint(Path(finished["run"]))
    assert checkpoint is not None
    names = sorted(read_json(checkpoint / "dsm.json")["files"])
    assert {".metadata", "common.pt", "metadata.json"} < set(names)
    for name in names:
        path = checkpoint / name
        whole = path.read_bytes()
        for damaged in (whole[:-1], bytes([*whole[:-1], whole[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.raises(DsmError, match=f"{name}: is damaged"):
                convert(Path(finished["run"]), tmp_path / "out")
        path.unlink()
        with pytest.raises(DsmError, match=f"{name}: is missing"):
            convert(Path(finished["run"]), tmp_path / "out")
        path.write_bytes(whole)
    assert not (tmp_path / "out").exists()
    assert convert(Path(finished["run"]), tmp_path / "out").num_parameters > 0


def test_a_file_that_is_not_of_the_checkpoint_is_refused(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = latest_checkpoint(Path(finished["run"]))
    assert checkpoint is not None
    foreign = checkpoint / "__7_0.distcp"
    foreign.write_bytes(b"")
    try:
        with pytest.raises(DsmError, match=r"__7_0\.distcp: does not belong to the checkpoint"):
            convert(Path(finished["run"]), tmp_path / "out")
    finally:
        foreign.unlink()


def test_a_replicated_optimizer_goes_on_where_a_distributed_one_has_stopped(
    sample_data: Path, make_recipe: Any, tmp_path: Path, read_tensors: Any
) -> None:
    whole = read_tensors(_train(make_recipe(sample_data, tmp_path / "whole"), steps=2))
    recipe = make_recipe(sample_data, tmp_path / "run")
    _train(recipe, steps=1)
    recipe["parallel"] = {"use_distributed_optimizer": False}
    other = read_tensors(_train(recipe, steps=2, resume=True))
    assert sorted(other) == sorted(whole) and len(whole) > 40
    for name, tensor in whole.items():
        assert torch.equal(other[name], tensor), name


def test_megatrons_own_reader_takes_a_checkpoint(
    finished: dict[str, Any], read_tensors: Any
) -> None:
    from megatron.core import dist_checkpointing

    from dsm_engine.parallel.config import ParallelConfig
    from dsm_engine.parallel.context import parallel_context

    checkpoint = latest_checkpoint(Path(finished["run"]))
    assert checkpoint is not None
    with parallel_context(ParallelConfig(), seed=0) as context, context.megatron_scope():
        found: Any = dist_checkpointing.load_plain_tensors(str(checkpoint))
        common: Any = dist_checkpointing.load_common_state_dict(str(checkpoint))
    assert common == {"iteration": 1, "updates": 1}
    for name, tensor in read_tensors(checkpoint).items():
        assert torch.equal(found[name], tensor), name


def test_a_checkpoint_of_another_precision_is_refused(finished: dict[str, Any]) -> None:
    other = {**finished, "training": {**finished["training"], "precision": "bf16"}}
    with pytest.raises(DsmError, match="was trained in fp32, the recipe says bf16"):
        _train(other, steps=2, resume=True)


def test_a_pointer_to_nothing_says_what_to_do(finished: dict[str, Any]) -> None:
    pointer = Path(finished["run"]) / "checkpoints" / "latest"
    name = pointer.read_text()
    pointer.write_text("step_00000777\n")
    try:
        with pytest.raises(DsmError, match="names 'step_00000777', which is not a checkpoint"):
            _train(finished, steps=2, resume=True)
    finally:
        pointer.write_text(name)


def test_fields_of_the_description_are_checked(finished: dict[str, Any]) -> None:
    checkpoint = latest_checkpoint(Path(finished["run"]))
    assert checkpoint is not None
    path = checkpoint / "dsm.json"
    whole = read_json(path)
    try:
        for key, value in (
            ("step", "x"),
            ("step", -4),
            ("stream", None),
            ("precision", "zz"),
            ("optimizer", False),
            ("files", ["a"]),
            ("more", 1),
        ):
            write_json(path, {**whole, key: value})
            with pytest.raises(DsmError, match=f"dsm.json: .*{key}"):
                _train(finished, steps=2, resume=True)
        for key in whole:
            write_json(path, {name: v for name, v in whole.items() if name != key})
            with pytest.raises(DsmError, match=r"dsm\.json: "):
                _train(finished, steps=2, resume=True)
    finally:
        write_json(path, whole)


def test_fewer_steps_than_done_are_refused(
    sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    _train(recipe, steps=2)
    with pytest.raises(DsmError, match=r"has done 2 steps, training\.steps asks for 1"):
        _train(recipe, steps=1, resume=True)
    assert _train(recipe, steps=2, resume=True).name == "step_00000002"


def test_two_runs_do_not_write_into_one_folder(
    sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    from dsm_engine.training.run_folder import only_writer

    with (
        only_writer(tmp_path / "run"),
        pytest.raises(DsmError, match="another dsm train is writing here"),
    ):
        _train(make_recipe(sample_data, tmp_path / "run"))


def test_a_run_that_failed_before_its_first_checkpoint_starts_again_with_resume(
    sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    with pytest.raises(DsmError, match=r"step \d: "):
        _train(recipe, steps=4, lr=1e30)
    _train(recipe, steps=2, lr=1e-3, resume=True)
    kinds = [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "run")]
    assert kinds == [
        ("validation", 0),
        ("step", 1),
        ("step", 2),
        ("validation", 2),
        ("checkpoint", 2),
    ]


def test_imported_weights_are_not_trained_over(
    finished: dict[str, Any], sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    convert(Path(finished["run"]), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "imported")
    with pytest.raises(DsmError, match="already holds a run"):
        _train(make_recipe(sample_data, tmp_path / "imported"))


def test_a_folder_exported_imported_and_exported_again_is_the_same_bit_for_bit(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    convert(Path(finished["run"]), tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_destination_that_holds_something_is_left_alone(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("x")
    for destination in (tmp_path, tmp_path / "precious"):
        with pytest.raises(DsmError, match="already there"):
            convert(Path(finished["run"]), destination)
    assert (tmp_path / "precious").read_text() == "x"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))
