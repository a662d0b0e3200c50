"""Checkpoints: Megatron's distributed format plus a description a person can read.

RUN/checkpoints/step_00000100/  Megatron's files and dsm.json (step, model shape, identity of the
                                stream of examples, checksums of all other files)
RUN/checkpoints/latest          the name of the newest whole checkpoint
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from pydantic import Field
from torch.distributed.checkpoint.api import CheckpointException

from dsm_engine.errors import DsmError
from dsm_engine.files import (
    atomic_file,
    file_xxh3,
    fsync_folder,
    make_folder,
    read_json,
    write_json,
)
from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.recipes import Section, validate_recipe

OptimizerKind = Literal["distributed", "replicated"]

_DESCRIPTION = "dsm.json"
_FORMAT_VERSION = 1
_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
}


@dataclass(frozen=True, kw_only=True)
class CheckpointDescription:
    """What `dsm.json` says of a checkpoint."""

    step: int
    """Optimizer steps done."""
    model: ModelConfig
    precision: Precision
    stream: dict[str, Any]
    """What fixes the stream of examples: a resumed run must have the same."""
    optimizer: OptimizerKind | None
    """How the moments beside the weights are laid out; None where there are none (step 0)."""
    files: dict[str, str] = field(default_factory=dict)
    """Name -> xxh3 of every other file; filled in by `save_checkpoint`."""


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
    if "/" in name or not (folder / _DESCRIPTION).exists():
        raise DsmError(
            f"{pointer}: names {name!r}, which is not a checkpoint; write the name of a folder "
            f"beside it into that file, or delete it to start again"
        )
    return folder


def describe_checkpoint(folder: Path) -> CheckpointDescription:
    """Reads dsm.json. Raises DsmError where `folder` is not a checkpoint of this engine."""
    path = folder / _DESCRIPTION
    if not path.exists():
        raise DsmError(f"{folder}: is not a checkpoint of this engine (it has no {_DESCRIPTION})")
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


def save_checkpoint(
    run: Path,
    description: CheckpointDescription,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer | None,
    context: ParallelContext,
    *,
    keep: int,
) -> Path:
    """Writes a checkpoint on all ranks together and then points `latest` at it.

    `optimizer` is given where the description says so: at step 0 it has no states yet. The folder
    is written aside and renamed, so it is whole under its final name; the newest `keep` and step 0
    stay.
    """
    assert (description.optimizer is None) == (optimizer is None)
    folder = checkpoint_folder(run, description.step)
    aside = folder.with_name(f".{folder.name}.tmp")
    if context.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
    dist.barrier()
    try:
        with context.megatron_scope():
            state = _sharded_state(chunks, optimizer, loading=False)
            dist_checkpointing.save(state, str(aside), content_metadata=_SHARDING)
    except (OSError, RuntimeError, CheckpointException, CheckpointingException) as error:
        shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint keeps a full disk full
        reason = str(error).strip().splitlines()[0]
        raise DsmError(
            f"{folder}: the checkpoint cannot be written ({reason}); the one before it is whole. "
            f"Make room and go on with --resume"
        ) from error
    dist.barrier()
    description = replace(description, files=_checksums(aside, _file_names(aside), context))
    if context.rank == 0:
        _publish(aside, folder, description)
        _drop_old(run, keep, newest=folder)
    dist.barrier()
    return folder


def load_checkpoint(
    folder: Path,
    expected_model: ModelConfig,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer | None,
    context: ParallelContext,
) -> CheckpointDescription:
    """Fills the model (and the optimizer) from a checkpoint written under any TP, PP and DP.

    All ranks together. Raises DsmError where the checkpoint is of another model or damaged.
    """
    description = describe_checkpoint(folder)
    differences = expected_model.differences(description.model)
    if differences:
        raise DsmError(
            f"{folder}: is a checkpoint of another model ({'; '.join(differences)}); "
            f"use its recipe or another run folder"
        )
    if optimizer is not None and description.optimizer is not None:
        _refuse_other_optimizer(folder, description.optimizer, optimizer_kind(optimizer))
    _verify(folder, description, context)
    saved_optimizer = optimizer if description.optimizer is not None else None
    with context.megatron_scope():
        if saved_optimizer is not None:
            _initialize_states(saved_optimizer)
        state = _sharded_state(chunks, saved_optimizer, loading=True)
        loaded: Any = dist_checkpointing.load(state, str(folder))
        for key, chunk in _by_key(chunks).items():
            chunk.load_state_dict(loaded[key])
        if saved_optimizer is not None:
            saved_optimizer.load_state_dict(loaded["optimizer"])
            _separate_step_counters(saved_optimizer)
        elif optimizer is not None:
            optimizer.reload_model_params()  # the main weights follow those just loaded
    return description


def optimizer_kind(optimizer: MegatronOptimizer) -> OptimizerKind:
    """Whether the moments are split over data-parallel ranks."""
    return "distributed" if _distributed_optimizers(optimizer) else "replicated"


def _refuse_other_optimizer(folder: Path, saved: OptimizerKind, ours: OptimizerKind) -> None:
    if saved != ours:
        needed = "true" if saved == "distributed" else "false"
        raise DsmError(
            f"{folder}: its moments are of a {saved} optimizer, the recipe has a {ours} one; set "
            f"parallel.use_distributed_optimizer={needed} to resume"
        )


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != _DESCRIPTION)


def _checksums(folder: Path, names: list[str], context: ParallelContext) -> dict[str, str]:
    """xxh3 of the files, each read by one rank, known to all."""
    mine = {name: file_xxh3(folder / name) for name in names[context.rank :: context.world_size]}
    parts: list[dict[str, str] | None] = [None] * context.world_size
    dist.all_gather_object(parts, mine)
    return {name: digest for part in parts if part for name, digest in part.items()}


def _verify(folder: Path, description: CheckpointDescription, context: ParallelContext) -> None:
    """Raises DsmError, on every rank, where a file is missing or not what was written."""
    names = sorted(description.files)
    missing = [name for name in names if not (folder / name).is_file()]
    faults: list[list[str]] = [[] for _ in range(context.world_size)]
    dist.all_gather_object(faults, missing)  # a rank must not wait for one that raised
    lost = sorted({name for fault in faults for name in fault})
    if lost:
        raise DsmError(f"{folder / lost[0]}: is missing; resume from another checkpoint")
    found = _checksums(folder, names, context)
    for name in names:
        if found[name] != description.files[name]:
            raise DsmError(
                f"{folder / name}: is damaged (xxh3 {found[name]}, {_DESCRIPTION} says "
                f"{description.files[name]}); resume from another checkpoint"
            )


def _sharded_state(
    chunks: Sequence[GPTModel], optimizer: MegatronOptimizer | None, *, loading: bool
) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {**_SHARDING, "dp_cp_group": group}
    state: dict[str, Any] = {
        key: chunk.sharded_state_dict(metadata=metadata) for key, chunk in _by_key(chunks).items()
    }
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            state, is_loading=loading, metadata=metadata
        )
    return state


def _by_key(chunks: Sequence[GPTModel]) -> dict[str, GPTModel]:
    """Megatron's keys of a rank's chunks; the tensors within have the whole model's names."""
    if len(chunks) == 1:
        return {"model": chunks[0]}
    return {f"model{chunk_idx}": chunk for chunk_idx, chunk in enumerate(chunks)}


def _publish(aside: Path, folder: Path, description: CheckpointDescription) -> None:
    values = {
        "format_version": _FORMAT_VERSION,
        "step": description.step,
        "model": description.model.model_dump(mode="json"),
        "precision": description.precision,
        "stream": description.stream,
        "optimizer": description.optimizer,
        "files": description.files,
    }
    write_json(aside / _DESCRIPTION, values)
    if folder.exists():  # a run that was set back to an earlier checkpoint comes here again
        shutil.rmtree(folder)
    aside.rename(folder)
    fsync_folder(folder.parent)
    with atomic_file(folder.parent / "latest") as file:
        file.write(folder.name.encode() + b"\n")


def _drop_old(run: Path, keep: int, *, newest: Path) -> None:
    """Drops the checkpoints saved longest ago: a run set back to an earlier step has higher
    numbers that are older."""
    folders = set((run / "checkpoints").glob("step_*")) - {newest, checkpoint_folder(run, 0)}
    by_age = sorted(folders, key=lambda folder: (folder / _DESCRIPTION).stat().st_mtime_ns)
    for folder in by_age[: max(0, len(by_age) - (keep - 1))]:
        shutil.rmtree(folder)


def _distributed_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    members = getattr(optimizer, "chained_optimizers", [optimizer])
    return [member for member in members if isinstance(member, DistributedOptimizer)]


def _initialize_states(optimizer: MegatronOptimizer) -> None:
    """Works around two faults of Megatron-Core 0.16.1 with torch's AdamW.

    A fresh DistributedOptimizer has no states and fails `assert len(steps) == 1` when asked for
    its own state to load into; and it expects the checkpoint to hold a `step` for each
    parameter, which it never wrote.
    """
    for member in _distributed_optimizers(optimizer):
        member._init_optimizer_states_with_dummy_values()
        member._set_main_param_and_optimizer_states = _keeping_step(
            member, type(member)._set_main_param_and_optimizer_states
        )


def _keeping_step(member: Any, original: Any) -> Any:
    def set_states(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group, order = member.model_param_group_index_map[model_param]
        parameter = member.optimizer.param_groups[group]["params"][order]
        step = member.optimizer.state[parameter].get("step")
        original(member, model_param, tensors if step is None else {**tensors, "step": step})

    return set_states


def _separate_step_counters(optimizer: MegatronOptimizer) -> None:
    """Works around a silent fault of Megatron-Core 0.16.1: after loading, all parameters share
    one `step` tensor, so that AdamW counts a step once for each parameter."""
    for member in _distributed_optimizers(optimizer):
        for state in member.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()
