"""The learning rate over a run: its ends, its peak, and no jump on the way."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.errors import DsmError
from dsm_engine.recipes import validate_recipe
from dsm_engine.training.config import OptimizationConfig
from dsm_engine.training.schedule import decay_span, learning_rate

LR = 3e-4


@st.composite
def _configs(draw: st.DrawFn) -> OptimizationConfig:
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd"]))
    steps = draw(st.integers(2, 3000))
    warmup = draw(st.integers(0, steps - 1))
    values: dict[str, Any] = {"steps": steps, "warmup_steps": warmup, "schedule": schedule}
    if schedule != "constant":
        values["min_lr"] = draw(st.sampled_from([0.0, LR / 10, LR]))
        values["decay_steps"] = draw(st.none() | st.integers(1, steps - warmup))
    if schedule == "wsd":
        values["wsd_decay"] = draw(st.sampled_from(["sqrt", "linear"]))
    return OptimizationConfig(global_batch_size=1, lr=LR, **values)


@given(_configs())
def test_the_rate_rises_to_lr_stays_or_falls_and_ends_at_min_lr(config: OptimizationConfig) -> None:
    rates = [learning_rate(config, step) for step in range(config.steps + 2)]
    peak = max(config.warmup_steps - 1, 0)
    assert rates[peak] == pytest.approx(LR, rel=1e-12)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if config.schedule == "constant":
        assert set(rates[peak:]) == {LR}
        return
    begin, length = decay_span(config)
    assert config.warmup_steps <= begin < begin + length <= config.steps
    assert rates[begin] == pytest.approx(LR, rel=1e-12)
    assert rates[begin + length] == pytest.approx(config.min_lr, abs=1e-18)
    assert all(rate > 0 for rate in rates[: begin + length]), "a step of the decay teaches nothing"
    if config.schedule == "wsd":
        assert begin + length == config.steps


@given(_configs())
def test_no_step_changes_the_rate_by_more_than_its_slope(config: OptimizationConfig) -> None:
    rates = [learning_rate(config, step) for step in range(config.steps + 2)]
    falls = [before - after for before, after in itertools.pairwise(rates)]
    assert max(-fall for fall in falls) <= LR / max(config.warmup_steps, 1) * (1 + 1e-9)
    if config.schedule == "constant":
        return
    length = decay_span(config)[1]
    # The steepest slope of each shape, over one step of the decay: 1, pi/2, and sqrt(1/length).
    steepest = {"linear": 1 / length, "cosine": 3.1416 / 2 / length, "sqrt": length**-0.5}
    shape = config.wsd_decay if config.schedule == "wsd" else config.schedule
    assert max(falls) <= (LR - config.min_lr) * steepest[shape] + LR * 1e-9


def test_rates_written_by_hand() -> None:
    def rates(**values: Any) -> list[float]:
        config = OptimizationConfig(global_batch_size=1, lr=1.0, steps=8, **values)
        return [learning_rate(config, step) for step in range(9)]

    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert rates(schedule="linear", min_lr=0.2) == pytest.approx(
        [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    )
    cosine = rates(schedule="cosine", warmup_steps=2, decay_steps=4)
    assert cosine == pytest.approx([0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0, 0, 0])
    assert rates(schedule="wsd", decay_steps=4) == pytest.approx(
        [1, 1, 1, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0]
    )
    assert rates(schedule="wsd", wsd_decay="linear")[6:] == [1, 1, 0], "a tenth, at least a step"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_steps": 5}, "decay_steps: schedule constant has no decay"),
        ({"min_lr": 1e-5}, "min_lr: schedule constant has no decay"),
        ({"schedule": "cosine", "min_lr": 2.0}, r"min_lr 2 is above lr 1"),
        ({"schedule": "cosine", "wsd_decay": "linear"}, "schedule cosine is not wsd"),
        ({"schedule": "wsd", "warmup_steps": 6, "decay_steps": 5}, "do not fit into 10 steps"),
        ({"schedule": "linear", "warmup_steps": 10}, "a decay of at least 1 do not fit"),
        ({"schedule": "step"}, "schedule"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    section = {"steps": 10, "global_batch_size": 1, "lr": 1.0, **values}
    with pytest.raises(DsmError, match=message):
        validate_recipe(section, OptimizationConfig, "recipe")
