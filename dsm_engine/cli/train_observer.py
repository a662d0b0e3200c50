"""What `dsm train` shows while it runs."""

import os
from pathlib import Path
from typing import Self

from dsm_engine.cli.terminal import ProgressLine
from dsm_engine.training.metrics import EvaluationOutcome, RunStart, StepMetrics

# Weight of the newest step in the smoothed tokens/s of the progress bar.
_RATE_SMOOTHING = 0.1
_FEW_STEPS = 100


class TerminalObserver:
    """Progress bar with step, loss, tokens/s a GPU, MFU and ETA; silent on ranks other than 0."""

    def __init__(self) -> None:
        self._progress = ProgressLine("train")
        self._silent = os.environ.get("RANK", "0") != "0"
        self._start: RunStart | None = None
        self._rate: float | None = None
        self._mfu: float | None = None
        self._validation = ""

    def on_start(self, start: RunStart) -> None:
        """Says what is trained on what."""
        self._start = start
        self._progress.restart()
        steps_per_epoch = start.packs_per_epoch / start.global_batch_size
        self._progress.print(
            f"{start.num_parameters / 1e6:,.2f} M parameters on {start.world_size} x "
            f"{start.device}, attention by {start.attention}; {start.num_documents:,} documents "
            f"in {start.packs_per_epoch:,} packs of {start.seq_length:,} tokens; "
            f"{start.global_batch_size} packs a step, {steps_per_epoch:,.1f} steps an epoch, "
            f"{start.steps:,} steps ({start.steps / steps_per_epoch:,.2f} epochs)"
        )
        if start.first_step:
            self._progress.print(f"resumed after step {start.first_step:,}")
        for note in start.notes:
            self._progress.print(f"note: {note}")
        if start.steps < _FEW_STEPS and steps_per_epoch < _FEW_STEPS:
            self._progress.print(
                f"note: {start.steps} optimizer steps are few; packing a small set leaves few "
                f"steps an epoch, so raise training.steps or lower training.global_batch_size"
            )

    def on_step(self, metrics: StepMetrics) -> None:
        """Moves the bar."""
        assert self._start is not None
        self._rate = _smoothed(self._rate, metrics.tokens_per_s_per_gpu)
        device = "GPU" if self._start.device.startswith("cuda") else "rank"
        note = f"loss {metrics.loss:.4f}  {self._rate:,.0f} tokens/s/{device}"
        if metrics.mfu is not None:
            self._mfu = _smoothed(self._mfu, metrics.mfu)
            note += f"  MFU {self._mfu:.1%}"
        note += self._validation
        self._progress.update(metrics.step, self._start.steps, note)

    def on_validation(self, step: int, loss: float) -> None:
        """Shows the validation loss behind the bar from now on."""
        self._validation = f"  validation {loss:.4f}"
        self._progress.print(f"step {step:,}: validation loss {loss:.4f}")

    def on_evaluation(self, step: int, outcome: EvaluationOutcome) -> None:
        """Prints the scores."""
        scores = ", ".join(
            f"{name} {'skipped' if score is None else f'{score:.1%}'}"
            for name, score in outcome.scores.items()
        )
        said = scores if outcome.error is None else f"failed: {outcome.error}"
        self._progress.print(f"step {step:,}: evaluation {said} ({outcome.seconds:,.0f} s)")

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Names the checkpoint."""
        self._progress.print(f"step {step:,}: checkpoint {folder}")

    def on_save_failed(self, step: int, fault: str) -> None:
        """Warns that training goes on without this checkpoint."""
        self._progress.print(
            f"warning: step {step:,}: the checkpoint cannot be written ({fault}); training goes "
            f"on, the one before is whole"
        )

    def on_fault(self, step: int, text: str) -> None:
        """Says what went wrong, or what the run was asked."""
        self._progress.print(f"step {step:,}: {text}")

    def __enter__(self) -> Self:
        if not self._silent:
            self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._silent:
            self._progress.__exit__(*error)


def _smoothed(average: float | None, newest: float) -> float:
    return newest if average is None else average + _RATE_SMOOTHING * (newest - average)
