"""Packing beside TRL, Megatron-Core and other packers, one thread."""

from pathlib import Path
from typing import Any

import numpy as np
import peers
from lengths import CAPACITY
from numpy.typing import NDArray
from result_file import Row, measure

from dsm_engine.data.pack_index import PackIndex, PackStrategy, build_pack_index

_BRIDGE_DOCUMENTS = 10_000  # its first-fit is quadratic: 776,000 documents take hours


def bench_packing(lengths: NDArray[np.int32], repetitions: int, peers_folder: Path) -> list[Row]:
    rows = _bench_best_fit(lengths, repetitions, peers_folder)
    strategies: tuple[PackStrategy, ...] = ("random", "concat_split")
    documents = np.arange(len(lengths), dtype=np.int32)
    megatron = measure(lambda: peers.megatron_index(lengths, documents), repetitions)
    for strategy in strategies:
        check_packs(lengths, build(lengths, strategy))
        ours = measure(lambda strategy=strategy: build(lengths, strategy), repetitions)
        rows.append(
            Row(
                name=f"pack_{strategy}_776k",
                n=len(lengths),
                value=ours,
                baseline="megatron.core: both shuffles and build_sample_idx",
                baseline_value=megatron,
            )
        )
    return rows


def build(lengths: NDArray[np.int32], strategy: PackStrategy) -> PackIndex:
    return build_pack_index(lengths, capacity=CAPACITY, strategy=strategy, seed=0)


def check_packs(lengths: NDArray[np.int32], packs: PackIndex) -> None:
    """Every document once, no pack over capacity; cut exactly at capacity where that is the way."""
    if packs.strategy == "concat_split":
        assert packs.num_packs == -(-int(lengths.sum(dtype=np.int64)) // CAPACITY)
        assert np.array_equal(np.unique(packs.documents), np.arange(len(lengths)))
    else:
        check_csr(lengths, packs.offsets, packs.documents)


def check_csr(
    lengths: NDArray[np.int32], offsets: NDArray[np.int64], documents: NDArray[Any]
) -> None:
    """Every document once, no pack empty or over capacity."""
    seen = np.zeros(len(lengths), np.bool_)
    seen[documents] = True
    assert len(documents) == len(lengths) and seen.all()
    assert offsets[0] == 0 and offsets[-1] == len(documents) and (np.diff(offsets) > 0).all()
    tokens = np.add.reduceat(lengths[documents], offsets[:-1], dtype=np.int64)
    assert tokens.max() <= CAPACITY


def _bench_best_fit(lengths: NDArray[np.int32], repetitions: int, peers_folder: Path) -> list[Row]:
    packs = build(lengths, "best_fit")
    check_packs(lengths, packs)
    print(f"best_fit: {packs.num_packs:,} packs, fill {packs.statistics(lengths).fill:.5f}")
    ours = measure(lambda: build(lengths, "best_fit"), repetitions)
    n, name = len(lengths), "pack_best_fit_776k"

    trl = peers.load_trl()
    theirs = None
    if trl is not None:
        given = peers.trl_input(lengths)
        bins: list[Any] = []

        def run_trl() -> None:
            bins[:] = trl(given)

        theirs = measure(run_trl, 1, warm_up=0)
        offsets, documents = peers.trl_csr(bins)
        check_csr(lengths, offsets, documents)
        assert packs.num_packs <= len(bins)
    baseline = "trl: sort and packing loop of _pack_bfd"
    rows = [Row(name=name, n=n, value=ours, baseline=baseline, baseline_value=theirs)]

    seqpacker = peers.load_seqpacker()
    if seqpacker is not None:
        wide = lengths.astype(np.int64)
        offsets, documents = seqpacker(wide)
        check_csr(lengths, offsets, documents)
        assert packs.num_packs < len(offsets)
        rows.append(
            Row(
                name=f"{name}_vs_seqpacker",
                n=n,
                value=ours,
                baseline="seqpacker: Packer('obfd').pack_flat",
                baseline_value=measure(lambda: seqpacker(wide), max(repetitions // 3, 1)),
            )
        )
    return rows + _bench_against_bridge(lengths[:_BRIDGE_DOCUMENTS], repetitions, peers_folder)


def _bench_against_bridge(
    lengths: NDArray[np.int32], repetitions: int, peers_folder: Path
) -> list[Row]:
    loaded = peers.load_megatron_bridge(peers_folder)
    if loaded is None:
        return []
    version, bridge = loaded
    given = lengths.tolist()
    bins: list[list[int]] = []

    def run_bridge() -> None:
        bins[:] = bridge(given)

    theirs = measure(run_bridge, 1, warm_up=0)
    assert sorted(x for lengths_of_bin in bins for x in lengths_of_bin) == sorted(given)
    assert max(map(sum, bins)) <= CAPACITY
    packs = build(lengths, "best_fit")
    check_packs(lengths, packs)
    assert packs.num_packs <= len(bins)
    return [
        Row(
            name="pack_best_fit_10k_vs_megatron_bridge",
            n=len(lengths),
            value=measure(lambda: build(lengths, "best_fit"), repetitions),
            baseline=f"megatron-bridge {version}: first_fit_decreasing",
            baseline_value=theirs,
        )
    ]
