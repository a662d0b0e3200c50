"""Learning rate as a function of the step alone, so that a resumed run needs no state."""

from dsm_engine.training.config import OptimizationConfig


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """The rate of step `step`, counted from 0: linear warm-up, then constant."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    return config.lr
