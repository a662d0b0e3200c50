"""Loss spikes: losses far above those before them."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

MAD_TO_SIGMA = 1.4826
"""Standard deviations in a median absolute deviation of a normal distribution (1 / its 0.75
quantile): Rousseeuw and Croux, Alternatives to the Median Absolute Deviation, 1993."""
LEAST_SIGMA = 0.01
"""Of the median: losses that hardly vary make no spike of a small step."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A loss far above those before it."""

    loss: float
    median: float
    """Of the window."""
    score: float
    """(loss - median) / sigma."""


class SpikeDetector:
    """Compares each loss with the `window` before it, by median and median absolute deviation.

    sigma = max(1.4826 MAD, 0.01 |median|); a spike lies more than `threshold` of them above the
    median. Spikes enter the window too: a level that stays is no spike after half a window.
    """

    def __init__(self, *, window: int, threshold: float, before: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(before, maxlen=window)
        self._least = max(4, window // 4)
        self._threshold = threshold

    def see(self, loss: float) -> Spike | None:
        """Takes a finite loss into the window; the spike, where it is one."""
        spike = self._compare(loss) if len(self._losses) >= self._least else None
        self._losses.append(loss)
        return spike

    def _compare(self, loss: float) -> Spike | None:
        middle = median(self._losses)
        deviation = median(abs(other - middle) for other in self._losses)
        sigma = max(MAD_TO_SIGMA * deviation, LEAST_SIGMA * abs(middle))
        if sigma == 0 or loss - middle <= self._threshold * sigma:
            return None
        return Spike(loss=loss, median=middle, score=(loss - middle) / sigma)
