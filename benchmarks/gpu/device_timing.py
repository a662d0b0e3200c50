"""Time on the device, by CUDA events, and what the device can do at best.

Two ways. `time_small` is for calls of microseconds: many of them are captured into one CUDA graph
and its replays are timed, so that neither Python nor the launch of each is in the figure; what the
device needs between two kernels is. `time_large` is for calls above, one at a time, behind a kernel
that reads more than the L2 cache holds: what lies there is old, and nothing waits to be written.
Both are queued behind a kernel that waits for as long as the host needs to queue them, so that the
host is never waited for.

Timers are functions of a call, so that the rows can be made without a device, by another clock.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from result_file import Timing, summarize

Call = Callable[[], Any]

CALLS_PER_GRAPH = 50
_WARM_UP_S = 0.1
_MEASURE_S = 1.0
_FEWEST, _MOST = 5, 100
_COPY_BYTES = 2 << 30
_FASTEST_CLOCK_HZ = 2.5e9  # above any clock that a GPU of today runs at: waits are never too short
_LONGEST_WAIT_S = 0.05


class Timer(Protocol):
    """Device seconds of one call."""

    def time_small(self, call: Call) -> Timing: ...

    def time_large(self, call: Call) -> Timing: ...


class DeviceTimer:
    """Times on a CUDA device, the current one."""

    def __init__(self, device: torch.device) -> None:
        num_bytes = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._over_cache = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
        self._sum = torch.zeros((), dtype=torch.float32, device=device)

    def time_small(self, call: Call) -> Timing:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _warm_up(call)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS_PER_GRAPH):
                call()
        wait_cycles = _wait_cycles(_warm_up(graph.replay))
        replays = self._repeat(graph.replay, lambda: torch.cuda._sleep(wait_cycles))
        return replays.per(CALLS_PER_GRAPH)

    def time_large(self, call: Call) -> Timing:
        wait_cycles = _wait_cycles(_warm_up(call))

        def before() -> None:
            torch.sum(self._over_cache, dim=0, out=self._sum)
            torch.cuda._sleep(wait_cycles)

        return self._repeat(call, before)

    def _repeat(self, call: Call, before: Call) -> Timing:
        seconds: list[float] = []
        started = time.perf_counter()
        while len(seconds) < _MOST:
            if len(seconds) >= _FEWEST and time.perf_counter() - started > _MEASURE_S:
                break
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before()
            begin.record()
            result = call()
            end.record()
            end.synchronize()
            del result
            seconds.append(begin.elapsed_time(end) / 1e3)
        return summarize(seconds)


def copy_bandwidth(timer: Timer, device: torch.device, num_bytes: int = _COPY_BYTES) -> Timing:
    """Bytes a second of a copy within device memory, those read and those written both counted."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return rate(timer.time_large(lambda: target.copy_(source)), 2 * num_bytes)


def empty_launch(timer: Timer) -> Timing:
    """Seconds of a kernel that does nothing: torch's wait of zero cycles."""
    return timer.time_small(lambda: torch.cuda._sleep(0))


def rate(timing: Timing, amount: float) -> Timing:
    """The amount over each of the times; a long time is a low rate."""
    first, third = timing.quartiles
    return Timing(
        median=amount / timing.median,
        quartiles=(amount / third, amount / first),
        repetitions=timing.repetitions,
    )


def _wait_cycles(queueing_s: float) -> int:
    """Cycles that outlast the queueing of a call, by twice what its fastest took."""
    return int(min(_LONGEST_WAIT_S, 2 * queueing_s) * _FASTEST_CLOCK_HZ)


def _warm_up(call: Call) -> float:
    """Calls until the device is warm; the seconds the host needed to queue the fastest."""
    call()
    torch.cuda.synchronize()
    fastest = float("inf")
    started = time.perf_counter()
    while time.perf_counter() - started < _WARM_UP_S:
        queued = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - queued)
        torch.cuda.synchronize()
    return fastest
