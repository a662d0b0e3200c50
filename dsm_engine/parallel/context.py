"""Starts and ends the process groups of one job, on CPU/gloo and CUDA/NCCL alike."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from dsm_engine.errors import DsmError
from dsm_engine.parallel import cpu_backend
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.parallel.rendezvous import store_of_this_start


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """Where this rank stands. Sizes count ranks; the data-parallel group leaves TP, PP and CP
    out."""

    device: torch.device
    rank: int
    world_size: int
    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    vp_size: int
    """Model chunks this rank holds."""
    closing: contextlib.ExitStack = field(
        default_factory=contextlib.ExitStack, repr=False, compare=False
    )
    """Closed before the job is left."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding, in its first chunk."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the output layer, in its last chunk, and computes the loss."""
        return self.pp_rank == self.pp_size - 1

    def megatron_scope(self) -> contextlib.AbstractContextManager[object]:
        """Goes around Megatron code that names CUDA outside the forward pass: building a model,
        building, stepping, saving and loading its optimizer. Nothing on CUDA."""
        if self.device.type == "cuda":
            return contextlib.nullcontext()
        return cpu_backend.CudaNamesAsCpu()


def world_size() -> int:
    """Processes of the job torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_memory() -> int:
    """Bytes this rank may fill: its GPU's, or its share of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(_local_rank()).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def parallel_context(config: ParallelConfig, *, seed: int) -> Iterator[ParallelContext]:
    """Joins the job torchrun started (or makes a job of one process) and leaves it at the end.

    Where the process has joined already, that job is used, and left to whoever joined it. Raises
    DsmError where the device asked for is absent or the world does not fit the layout.
    """
    device = _choose_device(config)
    if world_size() % config.model_parallel_size:
        raise DsmError(
            f"parallel: TP {config.tensor_model_parallel_size} x PP "
            f"{config.pipeline_model_parallel_size} x CP {config.context_parallel_size} does not "
            f"divide the world of {world_size()} process(es); start it with torchrun "
            f"--nproc-per-node {config.model_parallel_size} or change the layout"
        )
    if device.type == "cpu":
        cpu_backend.install()
    from megatron.core import parallel_state

    gc.collect()  # a job before this one leaves its process groups, two threads each, to it
    joined_here = not dist.is_initialized()
    if joined_here:
        _join(device, timedelta(seconds=config.timeout_s))
    groups_before = _groups()
    vp_size = config.virtual_pipeline_model_parallel_size
    try:
        minutes: Any = config.timeout_s / 60  # annotated int, used as a number
        parallel_state.initialize_model_parallel(
            config.tensor_model_parallel_size,
            config.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=vp_size if vp_size > 1 else None,
            context_parallel_size=config.context_parallel_size,
            distributed_timeout_minutes=minutes,
        )
        try:
            tp_rank = parallel_state.get_tensor_model_parallel_rank()
            _seed(device, seed, tp_rank)
            context = ParallelContext(
                device=device,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
                dp_rank=parallel_state.get_data_parallel_rank(),
                dp_size=parallel_state.get_data_parallel_world_size(),
                tp_rank=tp_rank,
                tp_size=parallel_state.get_tensor_model_parallel_world_size(),
                pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
                pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
                cp_rank=parallel_state.get_context_parallel_rank(),
                cp_size=parallel_state.get_context_parallel_world_size(),
                vp_size=vp_size,
            )
            with context.closing:
                yield context
            if not joined_here:  # else they end with the job
                dist.barrier()  # gloo aborts where a group ends that another rank still makes
                for group in _groups() - groups_before:
                    dist.destroy_process_group(group)
        finally:
            parallel_state.destroy_model_parallel()
    finally:
        if joined_here:
            dist.destroy_process_group()


def _groups() -> set[Any]:
    """The process groups of this process; Megatron keeps no list of those it makes."""
    world: Any = dist.distributed_c10d._world
    return set(world.pg_map)


def _choose_device(config: ParallelConfig) -> torch.device:
    have_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not have_cuda:
        raise DsmError(
            "parallel.device=cuda: torch sees no CUDA device; check the driver and that torch is "
            "a CUDA build, or set parallel.device=cpu"
        )
    if config.device == "cpu" and have_cuda:
        raise DsmError(
            "parallel.device=cpu: this machine has a GPU and Megatron-Core would use it; hide it "
            "with CUDA_VISIBLE_DEVICES= (empty) to run on the CPU"
        )
    if not have_cuda:
        return torch.device("cpu")
    local_rank = _local_rank()
    if local_rank >= torch.cuda.device_count():
        raise DsmError(
            f"parallel: local rank {local_rank} has no GPU, this machine has "
            f"{torch.cuda.device_count()}; start torchrun with --nproc-per-node of at most that"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _join(device: torch.device, timeout: timedelta) -> None:
    backend = "gloo" if device.type == "cpu" else "nccl"
    if "RANK" in os.environ:
        store, rank, ranks = store_of_this_start(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    else:
        # A job of one needs no port: nothing to collide with a neighbour's.
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)


def _seed(device: torch.device, seed: int, tp_rank: int) -> None:
    torch.manual_seed(seed)
    if device.type == "cpu":
        cpu_backend.seed_tracker(seed, tp_rank)
    else:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
