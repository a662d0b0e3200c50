"""Packing 100 million documents on 2 threads, beside copying its input and output once."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from lengths import CAPACITY
from numpy.typing import NDArray
from packing import check_packs
from result_file import Row, Timing, measure

from dsm_engine.data.pack_index import PackArena, PackIndex, PackStrategy, build_pack_index

_THREADS = 2
_COLD_REPETITIONS = 3
_STRATEGIES: tuple[PackStrategy, ...] = ("best_fit", "random")


def bench_large_packing(lengths: NDArray[np.int32], repetitions: int) -> list[Row]:
    """Warm: memory of an arena, reused. Cold: memory that nobody touched before."""
    rows = []
    for strategy in _STRATEGIES:
        packs = _build(lengths, strategy, None)
        check_packs(lengths, packs)
        copied = [lengths, packs.documents, packs.offsets]
        warm_copy, cold_copy = _time_copies(copied, repetitions)
        del copied, packs
        arena = PackArena()
        warm = measure(partial(_build, lengths, strategy, arena), repetitions)
        del arena
        cold = measure(partial(_build, lengths, strategy, None), _COLD_REPETITIONS, warm_up=0)
        for suffix, ours, theirs, memory in (
            ("", warm, warm_copy, "warm"),
            ("_cold", cold, cold_copy, "untouched"),
        ):
            rows.append(
                Row(
                    name=f"pack_{strategy}_100m{suffix}",
                    n=len(lengths),
                    value=ours,
                    baseline=f"input and output copied once, {_THREADS} threads, {memory} memory",
                    baseline_value=theirs,
                )
            )
        rows += _bench_per_document(lengths, strategy, repetitions, warm)
    return rows


def _bench_per_document(
    lengths: NDArray[np.int32], strategy: PackStrategy, repetitions: int, warm: Timing
) -> list[Row]:
    """What a document costs among 1, 10 and 100 million; the peer is the first of these."""
    costs = {}
    for divisor, name in ((100, "1m"), (10, "10m")):
        some, arena = lengths[: len(lengths) // divisor], PackArena()
        costs[name] = len(some), measure(partial(_build, some, strategy, arena), repetitions)
    costs["100m"] = len(lengths), warm
    n, first = costs["1m"]
    return [
        Row(
            name=f"pack_{strategy}_per_document_{name}",
            n=count,
            value=timing.per(count),
            baseline="among 1 million",
            baseline_value=first.per(n),
        )
        for name, (count, timing) in costs.items()
    ]


def _build(
    lengths: NDArray[np.int32], strategy: PackStrategy, arena: PackArena | None
) -> PackIndex:
    return build_pack_index(
        lengths, capacity=CAPACITY, strategy=strategy, seed=0, threads=_THREADS, arena=arena
    )


def _time_copies(arrays: list[NDArray[Any]], repetitions: int) -> tuple[Timing, Timing]:
    """Into memory written before, and into memory that was not."""
    with ThreadPoolExecutor(_THREADS) as pool:

        def copy_to_new() -> list[NDArray[Any]]:
            new = [np.empty_like(x) for x in arrays]
            _copy(pool, arrays, new)
            return new

        cold = measure(copy_to_new, _COLD_REPETITIONS, warm_up=0)
        written = copy_to_new()
        return measure(lambda: _copy(pool, arrays, written), repetitions), cold


def _copy(
    pool: ThreadPoolExecutor, sources: list[NDArray[Any]], targets: list[NDArray[Any]]
) -> None:
    """Each thread copies its part of every array; NumPy gives up the GIL meanwhile."""

    def copy_part(thread_idx: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            begin = len(source) * thread_idx // _THREADS
            end = len(source) * (thread_idx + 1) // _THREADS
            np.copyto(target[begin:end], source[begin:end])

    for _ in pool.map(copy_part, range(_THREADS)):
        pass
