"""Where numbers of a run are looked at beside metrics.jsonl: TensorBoard, Weights & Biases."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file
from dsm_engine.training.config import LoggingConfig, WandbConfig

_WANDB_ID = "wandb_id"


class Board(Protocol):
    """Shows numbers by name over the steps."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def refuse_missing_wandb(logging: LoggingConfig) -> None:
    """Raises DsmError where the recipe asks for Weights & Biases and it is not installed."""
    if logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise DsmError(
            "logging.wandb: the package wandb is not installed; pip install wandb, or leave "
            "logging.wandb out (metrics.jsonl and TensorBoard have the same numbers)"
        )


def open_boards(
    run: Path, logging: LoggingConfig, *, first_step: int, recipe: Mapping[str, Any]
) -> list[Board]:
    """The boards the recipe asks for; a resumed run goes on behind step `first_step`."""
    boards: list[Board] = []
    if logging.tensorboard:
        boards.append(TensorBoard(run, first_step=first_step))
    if logging.wandb is not None:
        boards.append(WandbBoard(run, logging.wandb, recipe))
    return boards


class TensorBoard:
    """RUN/tensorboard; what a run wrote after the step it is resumed from is hidden."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WandbBoard:
    """One run of Weights & Biases for a run folder, resumed with it (RUN/wandb_id holds its id).

    It takes no step twice: what a run logged after the step it is resumed from stays as it was.
    """

    def __init__(self, run: Path, config: WandbConfig, recipe: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        id_file = run / _WANDB_ID
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        self._run: Any = wandb.init(
            project=config.project,
            name=config.name or run.name,
            mode=config.mode,
            dir=str(run),
            id=known,
            resume="allow",
            config=dict(recipe),
        )
        if known is None:
            with atomic_file(id_file) as file:
                file.write(f"{self._run.id}\n".encode())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()
