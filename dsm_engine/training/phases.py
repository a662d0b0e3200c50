"""Where the time of a step goes, without stopping the device to look.

A step is one line cut into phases: entering a phase ends the one before. On a CPU the cuts are
readings of the clock. On CUDA they are events in the stream, read when the device has passed them,
so a phase has the time that the device spent in it, or waited in it for the host.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import torch

Phase = Literal["data", "forward_backward", "gradients", "optimizer"]
PHASES: tuple[Phase, ...] = ("data", "forward_backward", "gradients", "optimizer")
"""`data`: waiting for the next pack and its copy to the device. `gradients`: reducing what the
backward pass has not reduced yet, the division, the norm, clipping. `optimizer`: the update, and
gathering parameters where that does not overlap the next step."""

Item = TypeVar("Item")


class _Cut(Protocol):
    """A point in time; `elapsed` is seconds from another to it."""

    def elapsed(self, since: Any) -> float: ...

    def passed(self) -> bool: ...


class _ClockCut:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def elapsed(self, since: "_ClockCut") -> float:
        return self.at - since.at

    def passed(self) -> bool:
        return True


class _EventCut:
    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def elapsed(self, since: "_EventCut") -> float:
        self.event.synchronize()
        return since.event.elapsed_time(self.event) / 1e3

    def passed(self) -> bool:
        return self.event.query()


class StepTimes:
    """The times of one step, once the device is through with it."""

    def __init__(self, cuts: list[tuple[Phase, _Cut]], end: _Cut) -> None:
        self._cuts = cuts
        self._end = end

    def ready(self) -> bool:
        """Whether reading them waits for nothing."""
        return self._end.passed()

    def total(self) -> float:
        """Seconds from the first phase to the end."""
        return self._end.elapsed(self._cuts[0][1])

    def by_phase(self) -> dict[str, float]:
        """Seconds in each phase; they sum to `total`."""
        seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        ends = [cut for _, cut in self._cuts[1:]] + [self._end]
        for (phase, begin), end in zip(self._cuts, ends, strict=True):
            seconds[phase] += end.elapsed(begin)
        return seconds


class PhaseClock:
    """Cuts steps into phases. `begin` a step, `enter` phases, `end` it."""

    def __init__(self, device: torch.device) -> None:
        self._new_cut: Callable[[], _Cut] = _EventCut if device.type == "cuda" else _ClockCut
        self._cuts: list[tuple[Phase, _Cut]] = []

    def begin(self) -> None:
        """Begins a step, with what comes before the first pack counted as `data`."""
        self._cuts = [("data", self._new_cut())]

    def enter(self, phase: Phase) -> None:
        """What follows is of this phase. Nothing outside a step, such as in validation."""
        if self._cuts and self._cuts[-1][0] != phase:
            self._cuts.append((phase, self._new_cut()))

    def end(self) -> StepTimes:
        """Ends the step."""
        times = StepTimes(self._cuts, self._new_cut())
        self._cuts = []
        return times

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; waiting for each counts as `data`, what is done with it does not."""
        while True:
            self.enter("data")
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.enter("forward_backward")
            yield item

    def within(self, phase: Phase, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls begin the phase."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.enter(phase)
            return function(*arguments, **options)

        return timed

    def watch(self, config: Any, optimizer: Any) -> None:
        """Has Megatron's schedule and optimizer say when a phase begins.

        The `finalize_model_grads_func` of the model's config ends the backward pass; the norm and
        clipping come before the optimizer's `step_with_ready_grads`.
        """
        config.finalize_model_grads_func = self.within(
            "gradients", config.finalize_model_grads_func
        )
        optimizer.step_with_ready_grads = self.within("optimizer", optimizer.step_with_ready_grads)
