"""Saves beside training: what they hold, and what becomes of a run whose saves fail."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan

from dsm_engine.errors import DsmError
from dsm_engine.training.checkpoint import latest_checkpoint, under_way
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import EvaluationOutcome, RunStart, StepMetrics, read_metrics


class _Observer:
    """Sets `late` at step 3 and notes what it is told."""

    def __init__(self) -> None:
        self.late = threading.Event()
        self.told: list[tuple[str, int]] = []

    def on_start(self, start: RunStart) -> None: ...

    def on_step(self, metrics: StepMetrics) -> None:
        self.told.append(("step", metrics.step))
        if metrics.step == 3:
            self.late.set()

    def on_validation(self, step: int, loss: float) -> None: ...

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self.told.append(("checkpoint", step))
        assert latest_checkpoint(folder.parent.parent) == folder

    def on_fault(self, step: int, text: str) -> None: ...

    def on_save_failed(self, step: int, fault: str) -> None:
        self.told.append(("save_failed", step))

    def on_evaluation(self, step: int, outcome: EvaluationOutcome) -> None: ...


def _recipe(make_recipe: Any, data: Path, run: Path, *, save_async: bool, **changes: Any) -> Any:
    values = make_recipe(data, run, training__steps=4, data__validation=None)
    values["logging"].update(save_every=1, keep_checkpoints=9, save_async=save_async, **changes)
    return TrainRecipe.model_validate(values)


@pytest.fixture
def write_boxes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces what writes a rank's file by a function that is given the real one."""
    real = under_way.write_boxes

    def replace(other: Any) -> None:
        def write(folder: Path, plan: SavePlan, planner: DefaultSavePlanner) -> Any:
            return other(lambda: real(folder, plan, planner), folder)

        monkeypatch.setattr(under_way, "write_boxes", write)

    return replace


def test_a_checkpoint_holds_its_step_though_training_went_on_while_it_was_written(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any, read_tensors: Any
) -> None:
    expected = train(
        _recipe(make_recipe, sample_data, tmp_path / "waits", save_async=False)
    ).with_name("step_00000002")
    observer = _Observer()

    def slow(write: Any, folder: Path) -> Any:
        if folder.name == ".step_00000002.tmp":
            assert observer.late.wait(60)
        return write()

    write_boxes(slow)
    recipe = _recipe(make_recipe, sample_data, tmp_path / "goes_on", save_async=True)
    recipe = recipe.model_copy(
        update={"logging": recipe.logging.model_copy(update={"save_every": 2})}
    )
    last = train(recipe, observer=observer)
    assert observer.told[:3] == [("step", 1), ("step", 2), ("step", 3)]
    assert sorted(observer.told[3:]) == [("checkpoint", 2), ("checkpoint", 4), ("step", 4)]
    found, steps_on = read_tensors(last.with_name("step_00000002")), read_tensors(last)
    for name, tensor in read_tensors(expected).items():
        assert torch.equal(found[name], tensor), name
        assert not torch.equal(steps_on[name], tensor), name


@pytest.mark.parametrize("save_async", [False, True])
def test_a_failed_save_leaves_no_half_and_training_goes_on(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any, save_async: bool
) -> None:
    def full_disk(write: Any, folder: Path) -> Any:
        written = write()
        if folder.name in (".step_00000002.tmp", ".step_00000003.tmp"):
            raise OSError(28, "No space left on device")
        return written

    write_boxes(full_disk)
    observer = _Observer()
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=save_async)
    assert train(recipe, observer=observer).name == "step_00000004"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "latest",
        "step_00000001",
        "step_00000004",
    ]
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "save_failed"]
    assert [line["step"] for line in lines] == [2, 3]
    assert "No space left on device" in lines[0]["fault"]
    assert [step for kind, step in observer.told if kind == "save_failed"] == [2, 3]


def test_three_failed_saves_in_a_row_end_the_run(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any
) -> None:
    def full_disk(write: Any, folder: Path) -> Any:
        raise OSError(28, "No space left on device")

    write_boxes(full_disk)
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=False)
    with pytest.raises(DsmError, match=r"3 checkpoints in a row cannot be written .*No space"):
        train(recipe)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("save_async", [False, True])
def test_a_run_whose_last_save_fails_ends_with_an_error(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any, save_async: bool
) -> None:
    def full_disk(write: Any, folder: Path) -> Any:
        if folder.name == ".step_00000004.tmp":
            raise RuntimeError("[enforce fail at inline_container.cc:863] . PytorchStreamWriter")
        return write()

    write_boxes(full_disk)
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=save_async)
    with pytest.raises(DsmError, match="the last checkpoint of the run cannot be written"):
        train(recipe)
    latest = latest_checkpoint(tmp_path / "run")
    assert latest is not None and latest.name == "step_00000003"


def test_what_cannot_be_written_beside_the_tensors_fails_the_save_too(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any
) -> None:
    def in_the_way(write: Any, folder: Path) -> Any:
        if folder.name == ".step_00000002.tmp":
            (folder / "common.pt").mkdir()
        return write()

    write_boxes(in_the_way)
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=True)
    assert train(recipe).name == "step_00000004"
    assert not (tmp_path / "run" / "checkpoints" / "step_00000002").exists()


def test_a_folder_that_cannot_be_made_fails_the_save(
    sample_data: Path, make_recipe: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=True)
    with pytest.raises(DsmError, match=r"3 checkpoints in a row .*the folder cannot be made"):
        train(recipe)
    assert (tmp_path / "run" / "checkpoints").read_text() == "in the way"


def test_a_run_that_diverges_publishes_the_checkpoint_that_was_being_written(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any
) -> None:
    def slow(write: Any, folder: Path) -> Any:
        threading.Event().wait(1)
        return write()

    write_boxes(slow)
    recipe = _recipe(make_recipe, sample_data, tmp_path / "run", save_async=True)
    training = recipe.training.model_copy(update={"lr": 1e30})
    with pytest.raises(DsmError, match=r"step \d: "):
        train(recipe.model_copy(update={"training": training}))
    latest = latest_checkpoint(tmp_path / "run")
    assert latest is not None and latest.name == "step_00000001"


def test_a_fault_of_ours_in_the_writing_thread_keeps_its_traceback(
    sample_data: Path, make_recipe: Any, tmp_path: Path, write_boxes: Any
) -> None:
    def broken(write: Any, folder: Path) -> Any:
        raise KeyError("a bug")

    write_boxes(broken)
    with pytest.raises(KeyError, match="a bug"):
        train(_recipe(make_recipe, sample_data, tmp_path / "run", save_async=True))
