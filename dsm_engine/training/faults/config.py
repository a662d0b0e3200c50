"""The recipe's section `faults`."""

from typing import Literal

from pydantic import Field

from dsm_engine.recipes import Section


class FaultsConfig(Section):
    """What the run does when something goes wrong; docs/faults.md."""

    non_finite: Literal["abort", "skip"] = "abort"
    """A step whose loss or gradient is not finite ends the run, or is gone over: it moves no
    weight and no moment. Either way its examples are in RUN/faults.jsonl and in RUN/faults, and
    `dsm train RECIPE --replay STEP` looks for the cause."""
    max_skipped: int = Field(default=3, gt=0)
    """Steps gone over in the whole run, resumptions counted in; one more ends it."""
    spike_window: int = Field(default=64, ge=8)
    """Steps whose losses a loss is compared with; nothing is flagged before a quarter of them."""
    spike_threshold: float | None = Field(default=8.0, gt=0)
    """A loss so many robust standard deviations above the median of the window is a spike: its
    examples go into RUN/faults.jsonl and the run goes on. Nothing: none is looked for."""
    stop_within_s: float = Field(default=300.0, gt=0)
    """Seconds from SIGTERM or SIGUSR1 within which the step is finished and saved; behind them the
    process ends with exit code 75."""
    hang_timeout_s: float | None = Field(default=None, gt=0)
    """A step, a validation, a save or the start-up that takes longer (seconds) is a hang: every
    rank writes its stacks to RUN/hang and ends with exit code 74. Default: 0.8 of
    parallel.timeout_s, so that it comes before the collective's own end."""
