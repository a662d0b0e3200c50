"""What is written of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsm_engine.cli.terminal import ProgressLine
from dsm_engine.cli.train_observer import TerminalObserver
from dsm_engine.errors import DsmError
from dsm_engine.training.boards import refuse_missing_wandb
from dsm_engine.training.config import LoggingConfig, TrainRecipe, WandbConfig
from dsm_engine.training.metrics import (
    EvaluationOutcome,
    MetricsWriter,
    RunStart,
    StepMetrics,
    read_metrics,
)
from dsm_engine.training.slices import SliceLoss

METRICS = StepMetrics(
    step=1,
    loss=2.5,
    token_loss=2.25,
    grad_norm=0.5,
    lr=1e-3,
    num_tokens=900,
    num_slots=1024,
    num_supervised=300,
    step_time_s=0.5,
    slots_per_s=2048.0,
    slots_per_s_per_gpu=2048.0,
    tokens_per_s_per_gpu=1800.0,
    mfu=None,
    memory_peak_bytes=1 << 20,
    time_s={"data": 0.1, "forward_backward": 0.3, "gradients": 0.05, "optimizer": 0.05},
    slices={"source/gsm8k": SliceLoss(loss=2.0, tokens=100)},
    consumed_samples=2,
    epoch=0.25,
)


def _recipe(make_recipe: Any, run: Path, **logging: Any) -> TrainRecipe:
    recipe = TrainRecipe.model_validate(make_recipe(run.parent, run))
    return recipe.model_copy(update={"logging": LoggingConfig(**logging)})


def _write(recipe: TrainRecipe) -> None:
    recipe.run.mkdir(parents=True, exist_ok=True)
    writer = MetricsWriter(recipe, first_step=0)
    writer.step(METRICS)
    writer.step(replace(METRICS, step=2, mfu=0.4))
    writer.validation(2, 3.0, {"source/x": SliceLoss(loss=3.5, tokens=7)})
    scores = {"gsm8k/cot": 0.5, "gsm8k/tool": None}
    writer.evaluation(2, EvaluationOutcome(scores=scores, seconds=1.5))
    writer.event("checkpoint", 2, wait_s=0.25, folder="x")
    writer.close()


SCALARS_OF_STEP_2 = {
    "train/loss": 2.5,
    "train/token_loss": 2.25,
    "train/mfu": 0.4,
    "train/tokens_per_s_per_gpu": 1800.0,
    "time/data": 0.1,
    "slices/source/gsm8k": 2.0,
    "validation/loss": 3.0,
    "validation/slices/source/x": 3.5,
    "evaluation/gsm8k/cot": 0.5,
    "checkpoint/wait_s": 0.25,
}


def test_every_number_is_in_jsonl_and_on_tensorboard(tmp_path: Path, make_recipe: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _write(_recipe(make_recipe, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert [line["kind"] for line in lines] == [
        "step",
        "step",
        "validation",
        "evaluation",
        "checkpoint",
    ]
    assert lines[0]["mfu"] is None and lines[1]["mfu"] == 0.4
    assert lines[0]["slices"] == {"source/gsm8k": {"loss": 2.0, "tokens": 100}}
    assert lines[2]["slices"] == {"source/x": {"loss": 3.5, "tokens": 7}}
    assert lines[3]["scores"] == {"gsm8k/cot": 0.5, "gsm8k/tool": None}

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    numbers = {k for k, v in lines[1].items() if isinstance(v, int | float)} - {"step"}
    assert {f"train/{name}" for name in numbers} <= tags
    for name, value in SCALARS_OF_STEP_2.items():
        last = board.Scalars(name)[-1]
        assert (last.step, last.value) == (2, pytest.approx(value)), name
    assert "evaluation/gsm8k/tool" not in tags and "checkpoint/folder" not in tags
    assert [point.step for point in board.Scalars("train/mfu")] == [2]


class _FakeWandb(SimpleNamespace):
    """A module that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(started=[], logged=[], finished=0, __spec__=SimpleNamespace())

    def init(self, **options: Any) -> Any:
        self.started.append(options)

        def finish() -> None:
            self.finished += 1

        return SimpleNamespace(
            id="abc123",
            log=lambda values, step: self.logged.append((step, values)),
            finish=finish,
        )


def test_wandb_has_every_number_and_goes_on_with_the_run(
    tmp_path: Path, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    recipe = _recipe(
        make_recipe,
        tmp_path / "run",
        tensorboard=False,
        wandb=WandbConfig(project="p", mode="offline"),
    )
    refuse_missing_wandb(recipe.logging)
    _write(recipe)
    _write(recipe)
    first, second = fake.started
    assert (first["project"], first["name"], first["mode"]) == ("p", "run", "offline")
    assert first["config"]["training"]["lr"] == 1e-3
    assert (first["id"], second["id"], second["resume"]) == (None, "abc123", "allow")
    of_step_2 = {k: v for step, values in fake.logged if step == 2 for k, v in values.items()}
    assert SCALARS_OF_STEP_2.items() <= of_step_2.items()
    assert fake.finished == 2


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, make_recipe: Any
) -> None:
    from dsm_engine.training.loop import train

    recipe = _recipe(make_recipe, tmp_path / "run", wandb=WandbConfig(project="p"))
    with pytest.raises(DsmError, match=r"logging\.wandb: the package wandb is not installed"):
        train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("device", "what"), [("cuda:0", "GPU"), ("cpu", "rank")])
def test_the_progress_bar_has_loss_speed_mfu_and_the_newest_validation(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    device: str,
    what: str,
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(ProgressLine, "update", lambda _, *values: shown.append(values))
    observer = TerminalObserver()
    observer.on_start(
        RunStart(
            run=tmp_path,
            num_parameters=1,
            num_documents=1,
            packs_per_epoch=10,
            steps=20,
            first_step=0,
            global_batch_size=2,
            seq_length=512,
            world_size=1,
            device=device,
            attention="split",
            notes=["something to know"],
        )
    )
    observer.on_step(METRICS)
    observer.on_validation(1, 3.0)
    observer.on_step(replace(METRICS, step=2, tokens_per_s_per_gpu=2800.0, mfu=0.412))
    observer.on_evaluation(2, EvaluationOutcome(scores={"a/cot": 0.5, "a/tool": None}, seconds=2.4))
    observer.on_evaluation(2, EvaluationOutcome(scores={}, seconds=1.0, error="no disk"))
    assert shown == [
        (1, 20, f"loss 2.5000  1,800 tokens/s/{what}"),
        (2, 20, f"loss 2.5000  1,900 tokens/s/{what}  MFU 41.2%  validation 3.0000"),
    ]
    printed = capsys.readouterr().out
    assert "note: something to know" in printed
    assert "note: 20 optimizer steps are few" in printed
    assert "step 2: evaluation a/cot 50.0%, a/tool skipped (2 s)" in printed
    assert "step 2: evaluation failed: no disk (1 s)" in printed
