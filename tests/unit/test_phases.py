"""Times of a step by phase, and the reporting that waits for no device."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsm_engine.training.phases import PHASES, PhaseClock, StepTimes
from dsm_engine.training.reports import RunReports


def test_phases_of_a_step_follow_its_calls_and_sum_to_its_time() -> None:
    clock = PhaseClock(torch.device("cpu"))

    def finalize(gradients: str) -> str:
        time.sleep(0.03)
        return gradients

    def step() -> bool:
        time.sleep(0.04)
        return True

    config = SimpleNamespace(finalize_model_grads_func=finalize)
    optimizer = SimpleNamespace(step_with_ready_grads=step)
    clock.watch(config, optimizer)

    def packs() -> Any:
        for pack in range(2):
            time.sleep(0.02)
            yield pack

    clock.begin()
    started = time.perf_counter()
    seen = []
    for pack in clock.waiting(packs()):
        seen.append(pack)
        time.sleep(0.01)
    assert config.finalize_model_grads_func("g") == "g" and optimizer.step_with_ready_grads()
    times = clock.end()
    elapsed = time.perf_counter() - started
    assert seen == [0, 1]
    by_phase = times.by_phase()
    assert tuple(by_phase) == PHASES
    least = {"data": 0.04, "forward_backward": 0.02, "gradients": 0.03, "optimizer": 0.04}
    assert all(by_phase[phase] >= seconds for phase, seconds in least.items())
    assert sum(by_phase.values()) == pytest.approx(times.total(), abs=1e-9)
    assert times.total() == pytest.approx(elapsed, abs=0.01)


def test_what_runs_outside_a_step_has_no_phase() -> None:
    clock = PhaseClock(torch.device("cpu"))
    assert list(clock.waiting(iter("ab"))) == ["a", "b"]
    clock.begin()
    assert sum(clock.end().by_phase().values()) < 1


class _Cut:
    """A point the device passes when it is told to; reading it before waits."""

    def __init__(self, at: float) -> None:
        self.at, self.is_passed, self.waited = at, False, False

    def elapsed(self, since: "_Cut") -> float:
        self.waited |= not self.is_passed
        return self.at - since.at

    def passed(self) -> bool:
        return self.is_passed


def test_a_step_is_reported_when_the_device_is_through_or_the_next_comes() -> None:
    reported: list[Any] = []
    reports = RunReports(None, SimpleNamespace(on_step=reported.append))  # type: ignore[arg-type]

    def add(name: str, end: _Cut) -> None:
        begin = _Cut(0.0)
        begin.is_passed = True
        times = StepTimes([("data", begin)], end)
        reports.step(times, lambda times: (name, times.total()))  # type: ignore[arg-type]

    first, second, third = _Cut(1.0), _Cut(2.0), _Cut(3.0)
    add("first", first)
    assert reported == []
    first.is_passed = True
    add("second", second)
    assert reported == [("first", 1.0)] and not first.waited
    reports.flush()
    assert reported[1:] == [("second", 2.0)] and second.waited
    third.is_passed = True
    add("third", third)
    assert reported[2:] == [("third", 3.0)]
    reports.flush()
    assert len(reported) == 3, "reported once"
