"""Lengths of synthetic documents: what the benchmarks are given."""

import numpy as np
from numpy.typing import NDArray

CAPACITY = 4096
_MEAN, _SIGMA, _SHORTEST = 350.0, 0.7, 16
_CHUNK = 10_000_000


def make_lengths(n: int) -> NDArray[np.int32]:
    """[n], lognormal, 350 tokens on average, 16 to CAPACITY; the same for every run."""
    random = np.random.Generator(np.random.PCG64(1234))
    lengths = np.empty(n, np.int32)
    for begin in range(0, n, _CHUNK):  # 100 million float64 at once are 800 MB
        chunk = lengths[begin : begin + _CHUNK]
        drawn = random.lognormal(np.log(_MEAN) - _SIGMA * _SIGMA / 2, _SIGMA, len(chunk))
        chunk[:] = np.clip(np.rint(drawn), _SHORTEST, CAPACITY)
    return lengths


def pack_lengths(num_tokens: int, mean: int = 350) -> list[int]:
    """Lengths of a full pack, `mean` tokens on average (12 documents of 4,096 tokens by default):
    lognormal as above, stretched to fill it."""
    random = np.random.Generator(np.random.PCG64(1234))
    drawn = random.lognormal(sigma=_SIGMA, size=-(-num_tokens // mean))
    ends = (drawn.cumsum() / drawn.sum() * num_tokens).round().astype(int)
    return np.diff(ends, prepend=0).tolist()
