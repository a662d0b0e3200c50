"""Evaluation of the model being trained, between two steps: rank 0 evaluates, the others wait.

What evaluates is handed in: training knows nothing of benchmarks.
"""

import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder
from dsm_engine.training.config import EvaluationConfig, TrainRecipe
from dsm_engine.training.metrics import EvaluationOutcome, read_metrics

EvaluateFolder = Callable[[Path, Path], dict[str, float | None]]
"""(Hugging Face folder, folder for the report) -> accuracy by BENCHMARK/MODE; on rank 0 only."""

_FOLDER = "evaluation"


class InJobEvaluation:
    """When to evaluate, and how a job of several ranks does it.

    Every rank makes one and calls `run`; a run that is resumed does not repeat what its metrics
    have. `first_step` is the step it goes on behind.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        run: Path,
        tokenizer: Tokenizer,
        evaluate: EvaluateFolder,
        *,
        first_step: int,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._folder = run / _FOLDER
        self._evaluate = evaluate
        # gloo, for its time-out: that of the job's own groups is meant for one collective.
        self._group: Any = dist.new_group(
            backend="gloo", timeout=timedelta(seconds=config.timeout_s)
        )
        done: list[Any] = [_evaluated(run, first_step) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(done, src=0, group=self._group)
        self._done: set[int] = done[0]

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether the model is to be evaluated after this many steps; the same on all ranks."""
        return step > 0 and step not in self._done and (last or step % self._config.every == 0)

    def run(self, step: int, export: Callable[[Path], None]) -> EvaluationOutcome:
        """Evaluates the weights that `export` writes, on all ranks together; it raises DsmError on
        all or none.

        An evaluation that fails is an outcome with an error, and its traceback stands in the
        folder of the step: a run of days goes on.
        """
        started = time.perf_counter()
        folder = self._folder / f"step_{step:08d}"
        fault: list[str | None] = [self._prepared(folder) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(fault, src=0, group=self._group)
        if fault[0] is None:
            try:
                export(folder / "model")
            except DsmError as error:
                fault = [str(error)]
        scores: list[Any] = [{}, fault[0]]
        if dist.get_rank() == 0 and fault[0] is None:
            scores = self._scores(folder)
        dist.broadcast_object_list(scores, src=0, group=self._group)
        self._done.add(step)
        seconds = time.perf_counter() - started
        return EvaluationOutcome(scores=scores[0], seconds=seconds, error=scores[1])

    def _prepared(self, folder: Path) -> str | None:
        """Makes the folder of a step anew; what is wrong where it cannot."""
        try:
            if folder.exists():  # of a run that was not resumed from here
                shutil.rmtree(folder)
            make_folder(folder)
        except (DsmError, OSError) as error:
            return f"{folder}: cannot be made anew: {error}"
        return None

    def _scores(self, folder: Path) -> list[Any]:
        """Scores and error of the model in a step's folder."""
        model = folder / "model"
        try:
            self._tokenizer.save(model)
            return [self._evaluate(model, folder / "report"), None]
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is no fault of training
            with suppress(OSError):
                (folder / "error.txt").write_text(traceback.format_exc(), errors="replace")
            return [{}, str(fault) if isinstance(fault, DsmError) else repr(fault)]
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the evaluated copy took
            if not self._config.keep_weights:
                shutil.rmtree(model, ignore_errors=True)


def refuse_missing_evaluation(recipe: TrainRecipe, evaluate: EvaluateFolder | None) -> None:
    """Raises DsmError where the recipe asks for an evaluation and the caller brought none."""
    if recipe.evaluation is not None and evaluate is None:
        raise DsmError(
            "evaluation: nothing to evaluate with was given to train(); run dsm train, or leave "
            "the section out"
        )


def _evaluated(run: Path, first_step: int) -> set[int]:
    """Steps whose evaluation stands in the metrics that a run resumed behind `first_step` keeps."""
    lines = [line for line in read_metrics(run) if line["kind"] == "evaluation"]
    return {line["step"] for line in lines if line["step"] <= first_step and not line["error"]}
