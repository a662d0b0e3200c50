"""Fills models and optimizers from checkpoints, and runs nothing that is in them.

torch's reader unpickles `.metadata`, Megatron's `common.pt` and the objects beside tensors. Here
the first goes through an unpickler that knows only the records of torch's checkpoints, the second
through `weights_only=True`, and objects are refused. Before that all files are compared with
dsm.json: a checksum shows damage, not malice, as whoever changes a file can change dsm.json too.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load

from dsm_engine.errors import DsmError
from dsm_engine.files import file_xxh3
from dsm_engine.model.config import ModelConfig
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.checkpoint.description import (
    COMMON,
    DESCRIPTION,
    METADATA,
    CheckpointDescription,
    describe_checkpoint,
)
from dsm_engine.training.checkpoint.moments import (
    held_slices,
    main_weights_loaded,
    moment_boxes,
    prepare_moments,
)
from dsm_engine.training.checkpoint.whole_model import torch_state, weight_boxes

_T = TypeVar("_T")
_RECORDS: tuple[type, ...] = (
    _MEM_FORMAT_ENCODING,
    _StorageInfo,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
    torch.Size,
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(record.__module__, record.__qualname__): record for record in _RECORDS},
    **{("torch", name): getattr(torch, name) for name in ("float32", "bfloat16")},
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


def load_checkpoint(
    folder: Path,
    expected_model: ModelConfig,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer | None,
    context: ParallelContext,
) -> CheckpointDescription:
    """Fills the model (and the optimizer) from a checkpoint written under any layout.

    All ranks together. Raises DsmError, on every rank, where the checkpoint is of another model,
    damaged, or holds what no checkpoint of this engine holds.
    """
    description = describe_checkpoint(folder)
    differences = expected_model.differences(description.model)
    if differences:
        raise DsmError(
            f"{folder}: is a checkpoint of another model ({'; '.join(differences)}); "
            f"use its recipe or another run folder"
        )
    records = verified_records(folder, description, context)
    with_moments = optimizer is not None and description.optimizer is not None
    with context.megatron_scope(), torch.no_grad():
        weights = weight_boxes(chunks)
        boxes = [box for boxes in weights for box in boxes]
        if optimizer is not None and with_moments:
            prepare_moments(optimizer, updates=records.updates)
            boxes += moment_boxes(held_slices(optimizer), weights)
        try:
            load(
                torch_state(boxes),
                storage_reader=_Reader(folder, records.metadata),
                planner=_Planner(flatten_state_dict=False, flatten_sharded_tensors=False),
            )
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise DsmError(f"{folder}: cannot be loaded: {reason}") from error
        if optimizer is not None:
            if not with_moments:
                optimizer.reload_model_params()  # the main weights follow those just loaded
            main_weights_loaded(optimizer)
    return description


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a checkpoint holds beside its tensors."""

    metadata: Metadata
    """Where each box of each tensor lies."""
    updates: int
    """How often the moments have been updated."""


def verified_records(
    folder: Path, description: CheckpointDescription, context: ParallelContext
) -> Records:
    """Compares all files with the description, then reads the two that are no tensors.

    All ranks together. Raises DsmError, on every rank, where a file is missing, foreign, damaged,
    or not what a checkpoint holds.
    """
    _refuse_damage(folder, description, context)
    return _on_all_ranks(lambda: _read_records(folder, description), context)


def _refuse_damage(
    folder: Path, description: CheckpointDescription, context: ParallelContext
) -> None:
    """Raises DsmError where a file is missing, foreign, or not what was written."""
    names = sorted(description.files)

    def look() -> None:
        for name in names:
            if not (folder / name).is_file():
                raise DsmError(f"{folder / name}: is missing; resume from another checkpoint")
        for path in sorted(folder.iterdir()):
            if path.name not in description.files and path.name != DESCRIPTION:
                raise DsmError(
                    f"{path}: does not belong to the checkpoint ({DESCRIPTION} does not name it); "
                    f"move it out of the folder, or resume from another checkpoint"
                )

    def compare() -> None:
        for name in names[context.rank :: context.world_size]:
            found = file_xxh3(folder / name)
            if found != description.files[name]:
                raise DsmError(
                    f"{folder / name}: is damaged (xxh3 {found}, {DESCRIPTION} says "
                    f"{description.files[name]}); resume from another checkpoint"
                )

    _on_all_ranks(look, context)
    _on_all_ranks(compare, context)


def _on_all_ranks(action: Callable[[], _T], context: ParallelContext) -> _T:
    """What the action returns here. Raises DsmError on every rank where it raises on one: none
    must wait for another that has left."""
    result: Any = None
    fault: str | None = None
    try:
        result = action()
    except DsmError as error:
        fault = str(error)
    faults: list[str | None] = [None] * context.world_size
    dist.all_gather_object(faults, fault)
    for theirs in faults:
        if theirs is not None:
            raise DsmError(theirs)
    return result


def _read_records(folder: Path, description: CheckpointDescription) -> Records:
    metadata = _read(folder / METADATA, _unpickle_metadata)
    for info in metadata.storage_data.values():
        if info.relative_path not in description.files:
            raise DsmError(
                f"{folder / METADATA}: points at {info.relative_path!r}, a file that {DESCRIPTION} "
                f"does not name; resume from another checkpoint"
            )
    common = _read(folder / COMMON, _load_common)
    if common["iteration"] != description.step:
        raise DsmError(
            f"{folder / COMMON}: is of step {common['iteration']}, {DESCRIPTION} says "
            f"{description.step}; resume from another checkpoint"
        )
    return Records(metadata=metadata, updates=common["updates"])


def _read(path: Path, reader: Callable[[Path], _T]) -> _T:
    try:
        return reader(path)
    except Exception as error:  # foreign bytes make unpicklers raise what they like
        raise DsmError(
            f"{path}: is not what a checkpoint of this engine holds "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            f"); nothing in it was run. Resume from another checkpoint"
        ) from error


def _unpickle_metadata(path: Path) -> Metadata:
    with path.open("rb") as file:
        metadata = _RecordUnpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    tensors = metadata.state_dict_metadata.values()
    if not all(isinstance(tensor, TensorStorageMetadata) for tensor in tensors):
        raise TypeError("it names objects that are no tensors")
    places = metadata.storage_data
    if not all(isinstance(place, _StorageInfo) for place in places.values()):
        raise TypeError("it does not say where its tensors lie")
    return metadata


class _RecordUnpickler(pickle.Unpickler):
    """Knows the records of torch's distributed checkpoints, and no other name."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _ALLOWED.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return found


def _load_common(path: Path) -> dict[str, int]:
    common = torch.load(path, map_location="cpu", weights_only=True)
    return {name: int(common[name]) for name in ("iteration", "updates")}


class _Reader(FileSystemReader):
    """Reads tensors, of which torch takes plain ones alone (`weights_only`)."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        return self._metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> NoReturn:
        raise AssertionError(f"{read_item.dest_index.fqn}: an object, not a tensor")
