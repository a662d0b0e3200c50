"""What Megatron-Core 0.16 hard-wires to CUDA, redirected so that it runs on a CPU with gloo.

Megatron names CUDA in four ways; each has one redirection here, and none changes a number:

1. `device=torch.cuda.current_device()`: that function answers with the CPU device.
2. `torch.cuda.synchronize()` and `current_stream()` around collectives and saves: nothing to do.
3. `device="cuda"` in factory calls, and optimizers that compare `tensor.type()` with
   "torch.cuda.FloatTensor": a torch function mode, entered only around building and stepping the
   optimizer and around checkpoints (`CudaNamesAsCpu`), so that it costs the model nothing;
   the pipeline schedules get a stand-in for their module-level `torch` instead.
4. The CUDA random-state tracker: one that forks the CPU generator.

On a machine with CUDA nothing here is ever installed.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_installed = False


def install() -> None:
    """Redirects Megatron's CUDA names to the CPU, once per process.

    Raises RuntimeError where CUDA is available: there the redirections would do harm.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU backend must not be installed where CUDA is available")
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random as megatron_random

    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.synchronize = lambda *args, **kwargs: None
    cuda.current_stream = lambda *args, **kwargs: None
    any_schedules: Any = schedules
    any_schedules.torch = _TorchOnCpu()
    any_random: Any = megatron_random
    any_random._CUDA_RNG_STATE_TRACKER = CpuRngTracker()
    any_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    any_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    any_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    _installed = True


def seed_tracker(seed: int, tensor_parallel_rank: int) -> None:
    """Names the random streams that Megatron's modules fork, as its CUDA seeding does."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker()
    assert isinstance(tracker, CpuRngTracker), "install() puts it there"
    tracker.reset()
    tracker.add("data-parallel-rng", seed)
    tracker.add("model-parallel-rng", seed + 2718 + tensor_parallel_rank)


class CudaNamesAsCpu(TorchFunctionMode):
    """Within it, factories asked for CUDA make CPU tensors, and tensors claim CUDA types."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        return func(*args, **kwargs)


class CpuRngTracker:
    """The contract of Megatron's CudaRNGStatesTracker, on the CPU generator."""

    use_cudagraphable_rng = False
    is_inference_rng_tracker = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every stream."""
        self._states: dict[str, torch.Tensor] = {}
        self._seeds: set[int] = set()

    def is_initialized(self) -> bool:
        """Whether any stream has been added."""
        return bool(self._states)

    def get_states(self) -> dict[str, torch.Tensor]:
        """A copy of the streams' states by name."""
        return dict(self._states)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Replaces all streams."""
        self._states = states

    def add(self, name: str, seed: int) -> None:
        """Adds a stream; a name or seed used twice is a fault of the caller's."""
        assert name not in self._states and seed not in self._seeds, (name, seed)
        self._seeds.add(seed)
        self._states[name] = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Within it the default generator continues the named stream."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._states[name])
        try:
            yield
        finally:
            self._states[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


class _TorchOnCpu:
    """What `megatron.core.pipeline_parallel.schedules` sees as `torch`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, device=_CPU if _names_cuda(device) else device, **kwargs)


def _names_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
