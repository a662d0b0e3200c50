"""How a folder of files becomes a checkpoint, and how old ones go. Rank 0 alone."""

import io
import pickle
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from dsm_engine.files import atomic_file, file_xxh3, fsync_folder, make_folder, write_json
from dsm_engine.training.checkpoint.description import (
    COMMON,
    DESCRIPTION,
    MEGATRON_CONFIG,
    METADATA,
    checkpoint_folder,
)


def aside(folder: Path) -> Path:
    """Where the files of a checkpoint are written before it has its name."""
    return folder.with_name(f".{folder.name}.tmp")


def begin(folder: Path) -> None:
    """Makes an empty folder aside. Raises DsmError where it cannot."""
    clear(folder)
    make_folder(aside(folder))


def clear(folder: Path) -> None:
    """Removes the folder aside: half a checkpoint keeps a full disk full."""
    shutil.rmtree(aside(folder), ignore_errors=True)


def write_records(
    folder: Path, metadata: Metadata, results: Sequence[WriteResult], *, step: int, updates: int
) -> dict[str, str]:
    """Writes what stands beside the tensors into the folder aside; their checksums.

    `.metadata` is torch's (where each box lies), `common.pt` and `metadata.json` are Megatron's.
    Raises DsmError where it cannot.
    """
    metadata.storage_data = {result.index: result.storage_data for result in results}
    metadata.storage_meta = StorageMeta()
    with atomic_file(aside(folder) / METADATA) as file:
        pickle.dump(metadata, file)
    common = io.BytesIO()
    torch.save({"iteration": step, "updates": updates}, common)
    with atomic_file(aside(folder) / COMMON) as file:
        file.write(common.getvalue())
    write_json(aside(folder) / MEGATRON_CONFIG, asdict(CheckpointingConfig("torch_dist")))
    names = (METADATA, COMMON, MEGATRON_CONFIG)
    return {name: file_xxh3(aside(folder) / name) for name in names}


def publish(folder: Path) -> None:
    """Gives the folder its name and points `latest` at it. Raises OSError or DsmError."""
    if folder.exists():  # a run that was set back to an earlier checkpoint comes here again
        _remove(folder)
    aside(folder).rename(folder)
    fsync_folder(folder.parent)
    with atomic_file(folder.parent / "latest") as file:
        file.write(folder.name.encode() + b"\n")


def drop_old(run: Path, keep: int, *, newest: Path) -> None:
    """Drops the checkpoints saved longest ago, so that `keep` stay, and that of step 0.

    By time and not by number: a run set back to an earlier step has higher numbers that are older.
    """
    folders = set((run / "checkpoints").glob("step_*")) - {newest, checkpoint_folder(run, 0)}
    by_age = sorted(folders, key=_saved_at)
    for folder in by_age[: max(0, len(by_age) - (keep - 1))]:
        _remove(folder)


def _saved_at(folder: Path) -> int:
    with suppress(OSError):
        return (folder / DESCRIPTION).stat().st_mtime_ns
    return 0


def _remove(folder: Path) -> None:
    """Removes a checkpoint; what is left of it where that fails is no checkpoint by its name."""
    gone = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
