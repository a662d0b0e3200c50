"""Packing, the file it is kept in, and the order of the packs."""

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dsm_engine.data.pack_index import PackIndex, PackOrder, build_pack_index, lengths_xxh3
from dsm_engine.errors import DsmError

STRATEGIES = ["random", "best_fit"]


def _lengths(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(5.6, 0.7, n), 16, 4096).astype(np.int32)


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[int]:
    """The tokens of each pack, the slow way."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting, default=capacity)
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return sorted(capacity - room for room in rooms)


def _tokens(packs: PackIndex, lengths: np.ndarray) -> list[int]:
    return [int(lengths[packs.pack(i)].sum()) for i in range(packs.num_packs)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_bytes_on_every_machine(strategy) -> None:
    # Lengths without a random generator, so that only the packing is pinned.
    lengths = (np.arange(50_000, dtype=np.int64) * 7919 % 4001 + 1).astype(np.int32)
    packs = build_pack_index(lengths, capacity=4096, strategy=strategy, seed=42, epoch=3)
    digest = xxhash.xxh3_64_hexdigest(packs.offsets.tobytes() + packs.documents.tobytes())
    assert digest == {"random": "ac396dbe4a33432b", "best_fit": "9a0da75aa9721fa4"}[strategy]


def test_best_fit_fills_packs_as_exact_best_fit_decreasing_does() -> None:
    for seed, (n, capacity, longest) in enumerate(
        [(1, 7, 7), (40, 10, 10), (300, 100, 60), (500, 64, 64), (700, 65, 9), (400, 4096, 2000)]
    ):
        lengths = np.random.default_rng(seed).integers(1, longest + 1, n).astype(np.int32)
        packs = build_pack_index(lengths, capacity=capacity, strategy="best_fit", seed=seed)
        assert sorted(_tokens(packs, lengths)) == _best_fit_decreasing(lengths, capacity)


def test_random_closes_a_pack_only_when_the_next_document_does_not_fit() -> None:
    lengths = _lengths(5000)
    packs = build_pack_index(lengths, capacity=4096, strategy="random", seed=1)
    tokens = _tokens(packs, lengths)
    for i in range(packs.num_packs - 1):
        assert tokens[i] + lengths[packs.pack(i + 1)[0]] > 4096


def test_random_permutations_are_uniform() -> None:
    orders = Counter(
        tuple(build_pack_index([1] * 4, capacity=4, strategy="random", seed=s).documents.tolist())
        for s in range(2400)
    )
    assert len(orders) == 24
    assert 50 < min(orders.values()) <= max(orders.values()) < 150  # 100 each, sigma 10


def test_random_order_leaves_no_trace_of_the_input_order() -> None:
    n = 200_000  # several buckets of the shuffle
    documents = build_pack_index([1] * n, capacity=1, strategy="random", seed=5).documents
    correlation = np.corrcoef(documents, np.arange(n))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(n)
    assert 0 < np.count_nonzero(documents == np.arange(n)) + 1 < 10  # one expected


def test_best_fit_orders_packs_and_equal_documents_at_random() -> None:
    n = 20_000
    packs = build_pack_index([3] * n, capacity=3, strategy="best_fit", seed=5)
    assert abs(np.corrcoef(packs.documents, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    lengths = _lengths(n)
    packs = build_pack_index(lengths, capacity=4096, strategy="best_fit", seed=5)
    longest = [int(lengths[packs.pack(i)].max()) for i in range(packs.num_packs)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 5 / np.sqrt(len(longest))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seed_epoch_and_lengths_change_the_packs(strategy) -> None:
    lengths = _lengths(1000)
    packs = [
        build_pack_index(lengths, capacity=4096, strategy=strategy, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 0), (1, 0), (0, 1)]
    ]
    assert len({p.documents.tobytes() for p in packs}) == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("lengths", "num_packs"), [([], 0), ([10], 1), ([9], 1), ([10, 10], 2), ([1] * 11, 2)]
)
def test_boundary_sizes(strategy, lengths, num_packs) -> None:
    packs = build_pack_index(lengths, capacity=10, strategy=strategy, seed=0)
    assert packs.num_packs == num_packs
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_overlong_and_empty_documents_are_rejected(strategy) -> None:
    with pytest.raises(
        DsmError, match="document 1 has 11 tokens, more than a pack of 10; 2 of 4 documents"
    ):
        build_pack_index([10, 11, 3, 12], capacity=10, strategy=strategy, seed=0)
    with pytest.raises(
        DsmError, match="document 2 has 0 tokens, and so 1 of 3 documents are empty"
    ):
        build_pack_index([10, 1, 0], capacity=10, strategy=strategy, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0}, "must be 1 to 16777216 tokens, found 0"),
        ({"capacity": (1 << 24) + 1}, "found 16777217"),
        ({"strategy": "worst_fit"}, r"'worst_fit' \(known: best_fit, random\)"),
        ({"seed": -1}, r"seed must be 0 to 2\^64 - 1, found -1"),
        ({"epoch": 1 << 64}, r"epoch must be 0 to 2\^64 - 1"),
        ({"lengths": [1.5]}, "one row of integers, found float64"),
        ({"lengths": [[1]]}, "one row of integers"),
        ({"lengths": [1 << 31]}, "found some from 2147483648"),
        ({"lengths": [-5]}, "found some from -5"),
    ],
)
def test_bad_arguments_are_rejected(change, message) -> None:
    arguments = {"lengths": [1], "capacity": 10, "strategy": "random", "seed": 0} | change
    with pytest.raises(DsmError, match=message):
        build_pack_index(arguments.pop("lengths"), **arguments)


def test_largest_capacity_and_longest_document() -> None:
    packs = build_pack_index([1 << 24, 1], capacity=1 << 24, strategy="best_fit", seed=0)
    assert sorted(packs.documents.tolist()) == [0, 1]
    assert packs.num_packs == 2


def test_statistics_of_packs_written_by_hand() -> None:
    packs = build_pack_index([10, 5, 4, 1], capacity=10, strategy="best_fit", seed=0)
    statistics = packs.statistics(np.array([10, 5, 4, 1], np.int32))
    assert (statistics.num_packs, statistics.fill, statistics.padding_tokens) == (2, 1.0, 0)
    assert statistics.documents_per_pack_mean == 2.0
    assert statistics.documents_per_pack_max == 3
    assert statistics.fill_histogram == (0,) * 9 + (2,)
    packs = build_pack_index([1, 10, 5], capacity=10, strategy="best_fit", seed=0)
    statistics = packs.statistics(np.array([1, 10, 5], np.int32))
    assert statistics.padding_tokens == 4
    assert statistics.fill_histogram == (0, 0, 0, 0, 0, 0, 1, 0, 0, 1)
    empty = build_pack_index([], capacity=10, strategy="random", seed=0)
    assert empty.statistics(np.array([], np.int32)).fill == 0.0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [0, 1, 500])
def test_a_saved_index_is_loaded_whole(tmp_path: Path, strategy, n: int) -> None:
    lengths = _lengths(n)
    packs = build_pack_index(lengths, capacity=4096, strategy=strategy, seed=(1 << 64) - 1, epoch=9)
    packs.save(tmp_path / "packs")
    loaded = PackIndex.load(tmp_path / "packs")
    assert np.array_equal(loaded.offsets, packs.offsets)
    assert np.array_equal(loaded.documents, packs.documents)
    assert loaded.documents.dtype == np.int32
    for name in ("capacity", "strategy", "seed", "epoch", "lengths_xxh3", "num_packs"):
        assert getattr(loaded, name) == getattr(packs, name)
    assert loaded.matches(lengths)
    assert loaded.offsets.ctypes.data % 64 == 0
    assert n == 0 or loaded.documents.ctypes.data % 64 == 0


def test_every_truncation_and_flip_of_the_file_is_rejected(tmp_path: Path) -> None:
    packs = build_pack_index(_lengths(20), capacity=4096, strategy="random", seed=0)
    path = tmp_path / "packs"
    packs.save(path)
    whole = path.read_bytes()
    flips = [
        whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        for i in range(len(whole))
        for bit in range(8)
    ]
    for content in [*(whole[:length] for length in range(len(whole))), *flips, whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(DsmError, match="packs: "):
            PackIndex.load(path)


def test_a_forged_header_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "packs"
    build_pack_index([3, 4], capacity=10, strategy="random", seed=0).save(path)
    whole = path.read_bytes()
    forgeries = [(8, "<I", 2, "version 1, found 2"), (12, "<I", 7, "found 7, 4 and 10")]
    forgeries += [(16, "<Q", 1 << 61, "expected 184467"), (24, "<Q", 3, "expected 204 bytes")]
    forgeries += [(32, "<Q", 1 << 40, "capacity of at"), (56, "<I", 2, "found 0, 2 and 10")]
    for offset, kind, value, message in forgeries:
        content = bytearray(whole)
        struct.pack_into(kind, content, offset, value)
        struct.pack_into("<Q", content, 80, xxhash.xxh3_64_intdigest(bytes(content[:80])))
        path.write_bytes(content)
        with pytest.raises(DsmError, match=message):
            PackIndex.load(path)


def test_offsets_that_do_not_rise_are_rejected(tmp_path: Path) -> None:
    packs = build_pack_index([3, 4, 5], capacity=5, strategy="random", seed=0)
    for offsets in ([0, 2, 1, 3], [0, 1, 2, 4], [1, 2, 3, 3], [0, 1, 1, 3]):
        object.__setattr__(packs, "offsets", np.array(offsets, np.int64))
        packs.save(tmp_path / "packs")
        with pytest.raises(DsmError, match="pack offsets that rise from 0 to 3"):
            PackIndex.load(tmp_path / "packs")


def test_a_missing_or_empty_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DsmError, match="packs: cannot be read: No such file"):
        PackIndex.load(tmp_path / "packs")
    (tmp_path / "packs").write_bytes(b"")
    with pytest.raises(DsmError, match="packs: is no pack index"):
        PackIndex.load(tmp_path / "packs")


def test_an_index_matches_only_the_lengths_it_was_built_for() -> None:
    lengths = _lengths(100)
    packs = build_pack_index(lengths, capacity=4096, strategy="random", seed=0)
    other = lengths.copy()
    other[50] += 1
    assert packs.matches(lengths)
    assert not packs.matches(other)
    assert not packs.matches(lengths[:-1])
    assert lengths_xxh3(lengths) == packs.lengths_xxh3


def test_a_pack_out_of_range_is_rejected() -> None:
    packs = build_pack_index([3, 4], capacity=10, strategy="random", seed=0)
    for pack_idx in (-1, 1):
        with pytest.raises(DsmError, match=f"has 1 packs, asked for pack {pack_idx}"):
            packs.pack(pack_idx)


def test_every_epoch_of_the_order_is_a_permutation_of_its_own() -> None:
    for num_packs in [*range(1, 34), 255, 256, 257, 1000]:
        order = PackOrder(num_packs, seed=11)
        epochs = [
            [order.pack_at(epoch * num_packs + i) for i in range(num_packs)] for epoch in range(3)
        ]
        assert all(sorted(epoch) == list(range(num_packs)) for epoch in epochs)
        assert num_packs < 10 or (epochs[0] != epochs[1] != epochs[2] != epochs[0])


def test_the_order_is_spread_evenly() -> None:
    firsts = Counter(PackOrder(5, seed=s).pack_at(0) for s in range(2000))
    assert 300 < min(firsts.values()) <= max(firsts.values()) < 500  # 400 each, sigma 18


def test_far_positions_of_the_order_are_in_range() -> None:
    order = PackOrder((1 << 40) + 7, seed=0)
    assert all(0 <= order.pack_at((1 << 62) + i) < (1 << 40) + 7 for i in range(1000))
    assert PackOrder(5, seed=0).pack_at(3) != PackOrder(5, seed=3).pack_at(3)


def test_bad_orders_and_positions_are_rejected() -> None:
    with pytest.raises(DsmError, match="at least one pack, found 0"):
        PackOrder(0, seed=0)
    with pytest.raises(DsmError, match="at least 0, found -1"):
        PackOrder(5, seed=0).pack_at(-1)
    with pytest.raises(DsmError, match="seed must be"):
        PackOrder(5, seed=-1)
