"""Loss spikes: the window, the robust deviation, and what is none."""

import numpy as np
import pytest

from dsm_engine.training.faults.spikes import LEAST_SIGMA, SpikeDetector


def _falling(count: int, *, noise: float = 0.02) -> list[float]:
    """A training curve: falls, and scatters."""
    steps = np.arange(count)
    return (2 + np.exp(-steps / 50) + np.random.default_rng(3).normal(0, noise, count)).tolist()


def test_a_training_curve_has_no_spikes() -> None:
    detector = SpikeDetector(window=64, threshold=8)
    assert [loss for loss in _falling(2000) if detector.see(loss)] == []


def test_a_spike_is_scored_by_median_and_median_absolute_deviation() -> None:
    losses = _falling(40)
    detector = SpikeDetector(window=32, threshold=8, before=losses)
    spike = detector.see(9.0)
    window = np.array(losses[-32:])
    sigma = 1.4826 * np.median(np.abs(window - np.median(window)))
    assert sigma > LEAST_SIGMA * np.median(window), "the case is of the deviation"
    assert spike is not None
    assert spike.median == np.median(window)
    assert spike.score == pytest.approx((9.0 - np.median(window)) / sigma)


def test_a_fall_is_no_spike_and_neither_is_a_hair_above_a_flat_curve() -> None:
    flat = [2.0] * 40
    assert SpikeDetector(window=32, threshold=8, before=flat).see(0.1) is None
    assert SpikeDetector(window=32, threshold=8, before=flat).see(2.0 + 8 * 0.02 - 1e-6) is None
    assert SpikeDetector(window=32, threshold=8, before=flat).see(2.0 + 8 * 0.02 + 1e-6)


def test_nothing_is_flagged_before_a_quarter_of_the_window() -> None:
    detector = SpikeDetector(window=64, threshold=8)
    found = [detector.see(loss) is not None for loss in [2.0] * 15 + [50.0, 50.0]]
    assert found == [False] * 16 + [True]


def test_a_level_that_stays_stops_being_a_spike() -> None:
    detector = SpikeDetector(window=32, threshold=8, before=_falling(32))
    flags = [detector.see(loss) is not None for loss in [9.0] * 32]
    assert flags[0] and not flags[-1]
    assert 10 <= sum(flags) <= 20


def test_a_resumed_detector_is_the_one_that_went_on() -> None:
    losses = [*_falling(100), 9.0, 2.0]
    whole = SpikeDetector(window=32, threshold=8)
    for loss in losses[:90]:
        whole.see(loss)
    resumed = SpikeDetector(window=32, threshold=8, before=losses[58:90])
    for loss in losses[90:]:
        assert whole.see(loss) == resumed.see(loss)
