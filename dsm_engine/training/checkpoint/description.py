"""What is said of a checkpoint in words: dsm.json, and where the folders lie."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.recipes import Section, validate_recipe

OptimizerKind = Literal["distributed", "replicated"]

DESCRIPTION = "dsm.json"
METADATA = ".metadata"
COMMON = "common.pt"
MEGATRON_CONFIG = "metadata.json"
_FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CheckpointDescription:
    """What `dsm.json` says of a checkpoint."""

    step: int
    """Steps of the run done."""
    model: ModelConfig
    precision: Precision
    stream: dict[str, Any]
    """What fixes the stream of examples: a resumed run must have the same."""
    optimizer: OptimizerKind | None
    """What held the moments beside the weights; either reads them. None where there are none
    (step 0)."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> xxh3 of every other file; filled in when the checkpoint is written."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / "checkpoints" / f"step_{step:08d}"


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where there is none."""
    pointer = run / "checkpoints" / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    folder = pointer.parent / name
    if "/" in name or not (folder / DESCRIPTION).exists():
        raise DsmError(
            f"{pointer}: names {name!r}, which is not a checkpoint; write the name of a folder "
            f"beside it into that file, or delete it to start again"
        )
    return folder


def describe_checkpoint(folder: Path) -> CheckpointDescription:
    """Reads dsm.json. Raises DsmError where `folder` is not a checkpoint of this engine."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise DsmError(f"{folder}: is not a checkpoint of this engine (it has no {DESCRIPTION})")
    values = read_json(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != _FORMAT_VERSION:
        raise DsmError(f"{path}: format version {version}, this engine reads {_FORMAT_VERSION}")
    del values["format_version"]
    saved = validate_recipe(values, _SavedDescription, str(path))
    return CheckpointDescription(**{name: getattr(saved, name) for name in values})


class _SavedDescription(Section):
    """What dsm.json must hold."""

    step: int = Field(ge=0)
    model: ModelConfig
    precision: Precision
    stream: dict[str, Any]
    optimizer: OptimizerKind | None
    files: dict[str, str]


def write_description(folder: Path, description: CheckpointDescription) -> None:
    """Writes dsm.json. Raises DsmError where it cannot."""
    values = {
        "format_version": _FORMAT_VERSION,
        "step": description.step,
        "model": description.model.model_dump(mode="json"),
        "precision": description.precision,
        "stream": description.stream,
        "optimizer": description.optimizer,
        "files": description.files,
    }
    write_json(folder / DESCRIPTION, values)
