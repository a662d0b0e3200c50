"""One save, from the plan that all ranks make to the folder that rank 0 publishes."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StoragePrefix
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from dsm_engine.errors import DsmError
from dsm_engine.files import file_xxh3
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.checkpoint import publishing
from dsm_engine.training.checkpoint.description import (
    CheckpointDescription,
    checkpoint_folder,
    write_description,
)


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """What became of one save; the same on every rank."""

    step: int
    folder: Path
    """Where the checkpoint lies, or would."""
    fault: str | None
    """Why it could not be written; None where it is whole and `latest` names it."""


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What one rank has written, or why it could not."""

    results: list[WriteResult] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


class SaveUnderWay:
    """Begins to write when it is made; every rank makes one, and ends it, in the same order."""

    def __init__(
        self,
        run: Path,
        description: CheckpointDescription,
        state: dict[str, Any],
        context: ParallelContext,
        *,
        keep: int,
        updates: int,
    ) -> None:
        """`state` holds this rank's boxes (`torch_state`), which must stay as they are until
        `is_written`. `updates` counts what the moments of this rank have seen."""
        self._run = run
        self._description = description
        self._context = context
        self._keep = keep
        self._folder = checkpoint_folder(run, description.step)
        self._planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._planner.set_up_planner(state, is_coordinator=context.rank == 0)
        plan = self._planner.create_local_plan()
        plan = replace(plan, storage_data=_StoragePrefix(f"__{context.rank}_"))
        self._metadata, self._updates, self._fault = self._agree(plan, updates)
        self._written = _Written()
        self._error: Exception | None = None
        # Not a daemon: the interpreter must not end while a thread is in the middle of a file.
        self._thread = threading.Thread(target=self._write, args=(plan,), name="checkpoint")
        self._thread.start()

    def is_written(self) -> bool:
        """Whether every rank has done its part; all ask together."""
        done = torch.tensor(int(not self._thread.is_alive()), device=self._context.device)
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return bool(done.item())

    def end(self) -> SaveOutcome:
        """Waits for all ranks; publishes what they have written, or removes it."""
        while not self.is_written():  # each time anew: one long wait would run into a time-out
            self._thread.join(0.1)
        ranks = _gather(self._written, self._context)
        fault = self._publish(ranks) if self._context.rank == 0 else None
        fault = _from_rank_0(fault)
        if self._error is not None:
            raise self._error
        return SaveOutcome(step=self._description.step, folder=self._folder, fault=fault)

    def _agree(self, plan: SavePlan, updates: int) -> tuple[Metadata | None, int, str | None]:
        """Rank 0 learns where each box will lie and makes the folder; why it cannot, on all."""
        metadata, fault = None, None
        gathered = _gather((plan, updates), self._context)
        if self._context.rank == 0:
            plans = [theirs for theirs, _ in gathered]
            whole, metadata = self._planner.create_global_plan(plans)
            assert _num_boxes(whole) == _num_boxes(plans), "two ranks write the same box"
            updates = max(count for _, count in gathered)
            try:
                publishing.begin(self._folder)
            except DsmError as error:
                fault = str(error)
        return metadata, updates, _from_rank_0(fault)

    def _write(self, plan: SavePlan) -> None:
        """On the thread: this rank's boxes into one file."""
        if self._fault is not None or not plan.items:
            return
        try:
            self._written = write_boxes(publishing.aside(self._folder), plan, self._planner)
        except (OSError, RuntimeError, DsmError) as error:  # torch's zip writer: RuntimeError
            self._written = _Written(fault=f"rank {self._context.rank}: {_first_line(error)}")
        except Exception as error:  # noqa: BLE001 - a fault of ours: raised where the traceback is seen
            self._error = error
            self._written = _Written(fault=f"rank {self._context.rank}: {error!r}")
        finally:
            self._planner.state_dict = {}  # the copies go

    def _publish(self, ranks: list["_Written"]) -> str | None:
        """Rank 0: the checkpoint under its name, or why there is none."""
        faults = [self._fault, *(rank.fault for rank in ranks)]
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is None:
            try:
                self._publish_whole(ranks)
            except (OSError, DsmError) as error:
                fault = _first_line(error)
        if fault is not None:
            publishing.clear(self._folder)
        return fault

    def _publish_whole(self, ranks: list["_Written"]) -> None:
        assert self._metadata is not None
        step = self._description.step
        results = [result for rank in ranks for result in rank.results]
        assert len(results) == sum(
            len(tensor.chunks)
            for tensor in self._metadata.state_dict_metadata.values()
            if isinstance(tensor, TensorStorageMetadata)
        )
        files = publishing.write_records(
            self._folder, self._metadata, results, step=step, updates=self._updates
        )
        for rank in ranks:
            files |= rank.checksums
        write_description(publishing.aside(self._folder), replace(self._description, files=files))
        publishing.publish(self._folder)
        publishing.drop_old(self._run, self._keep, newest=self._folder)


def write_boxes(folder: Path, plan: SavePlan, planner: DefaultSavePlanner) -> "_Written":
    """Writes the boxes of the plan and reads the file again for its checksum.

    Raises OSError or RuntimeError where it cannot.
    """
    # One thread: torch loses what others raise. No copying ahead: boxes are in host memory.
    storage = FileSystemWriter(folder, thread_count=1, per_thread_copy_ahead=0)
    results = storage.write_data(plan, planner).value()
    names = {result.storage_data.relative_path for result in results}
    return _Written(results=results, checksums={name: file_xxh3(folder / name) for name in names})


def _num_boxes(plans: list[SavePlan]) -> int:
    return sum(len(plan.items) for plan in plans)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _gather(value: Any, context: ParallelContext) -> list[Any]:
    """Each rank's value, on rank 0; nothing on the others."""
    values: list[Any] = [None] * context.world_size if context.rank == 0 else []
    dist.gather_object(value, values if context.rank == 0 else None, dst=0)
    return values


def _from_rank_0(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
