"""Learning rate as a function of the step alone, so that a resumed run needs no state."""

import math
from collections.abc import Callable

from dsm_engine.training.config import OptimizationConfig


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """The rate of step `step`, counted from 0.

    It rises linearly over the warm-up, from lr / warmup_steps to lr, stays there as long as the
    schedule says, and falls to min_lr, which it reaches in the step behind the decay: a run that
    ends with its decay spends no step at min_lr.

    With p the share of the decay that lies behind, lr - min_lr is multiplied by
      linear          1 - p
      cosine          (1 + cos(pi p)) / 2       Loshchilov and Hutter, SGDR, arXiv:1608.03983, eq. 5
      wsd, sqrt       1 - sqrt(p)               Hägele et al., arXiv:2405.18392, section 3
      wsd, linear     1 - p                     the same
    wsd (warm-up, stable, decay) is Hu et al., MiniCPM, arXiv:2404.06395, section 4: its decay is
    the end of the run, by default a tenth of the steps.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    begin, length = decay_span(config)
    behind = min(max((step - begin) / length, 0.0), 1.0)
    left = _SHAPES[config.wsd_decay if config.schedule == "wsd" else config.schedule](behind)
    return config.min_lr + (config.lr - config.min_lr) * left


def decay_span(config: OptimizationConfig) -> tuple[int, int]:
    """The step that the decay begins with, and the steps it takes; not for `constant`."""
    all_steps = config.steps - config.warmup_steps
    if config.schedule == "wsd":
        length = config.decay_steps or min(math.ceil(config.steps / 10), all_steps)
        return config.steps - length, length
    return config.warmup_steps, config.decay_steps or all_steps


_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda behind: 1.0 - behind,
    "cosine": lambda behind: (1.0 + math.cos(math.pi * behind)) / 2.0,
    "sqrt": lambda behind: 1.0 - math.sqrt(behind),
}
