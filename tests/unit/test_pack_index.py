"""Packing: every strategy against a slow one, alignment, policies, and what the packs cost."""

import dataclasses
import gc
from collections import Counter

import numpy as np
import pytest
import xxhash

from dsm_engine.data.pack_index import (
    STRATEGIES,
    PackArena,
    PackCost,
    PackIndex,
    build_pack_index,
    deal_packs,
    lengths_xxh3,
)
from dsm_engine.errors import DsmError

WHOLE = [strategy for strategy in STRATEGIES if strategy != "concat_split"]


DIGESTS = {
    "random": "d0fd604797c13156",
    "best_fit": "80aba0ac3a737e97",
    "concat_split": "dcef1fff9122b635",
    "first_fit_shuffle": "84723905773e3414",
    "balanced": "bf298eea5436e0ce",
}


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
    arrays = b"".join(array.tobytes() for array in packs.arrays())
    assert xxhash.xxh3_64_hexdigest(arrays) == DIGESTS[strategy]


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
    assert np.count_nonzero(documents == np.arange(n)) < 10  # one expected


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


@pytest.mark.parametrize("strategy", WHOLE)
def test_overlong_documents_are_rejected(strategy) -> None:
    with pytest.raises(
        DsmError, match="document 1 has 11 tokens, more than a pack of 10; 2 of 4 documents"
    ):
        build_pack_index([10, 11, 3, 12], capacity=10, strategy=strategy, seed=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_empty_documents_are_rejected(strategy) -> None:
    with pytest.raises(
        DsmError, match="document 2 has 0 tokens, and so 1 of 3 documents are empty"
    ):
        build_pack_index([10, 1, 0], capacity=10, strategy=strategy, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0}, "must be 1 to 16777216 tokens, found 0"),
        ({"capacity": (1 << 24) + 1}, "found 16777217"),
        ({"strategy": "worst_fit"}, r"'worst_fit' \(did you mean 'best_fit'"),
        ({"overlong": "dorp"}, r"'dorp' \(did you mean 'drop'"),
        ({"alignment": 3}, "multiple of the alignment, found 10 and 3"),
        ({"alignment": 0}, "multiple of the alignment, found 10 and 0"),
        ({"alignment": 20}, "multiple of the alignment, found 10 and 20"),
        ({"threads": 0}, "threads must be 1 to 1024, found 0"),
        ({"capacity": 1 << 40}, "capacity is out of range"),
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
    lengths = np.array([10, 5, 4, 1], np.int32)
    packs = build_pack_index(lengths, capacity=10, strategy="best_fit", seed=0)
    statistics = packs.statistics(lengths)
    assert (statistics.num_packs, statistics.fill, statistics.padding_tokens) == (2, 1.0, 0)
    assert statistics.documents_per_pack_mean == 2.0
    assert statistics.documents_per_pack_max == 3
    assert statistics.fill_histogram == (0,) * 9 + (2,)
    assert (statistics.sum_squares, statistics.max_squares) == (142, 100)
    lengths = np.array([1, 10, 5], np.int32)
    packs = build_pack_index(lengths, capacity=10, strategy="best_fit", seed=0)
    statistics = packs.statistics(lengths)
    assert (statistics.tail_padding, statistics.alignment_padding) == (4, 0)
    assert statistics.fill_histogram == (0, 0, 0, 0, 0, 0, 1, 0, 0, 1)
    empty = build_pack_index([], capacity=10, strategy="random", seed=0)
    assert empty.statistics(np.array([], np.int32)).fill == 0.0


def test_statistics_count_padding_by_cause() -> None:
    lengths = np.array([7, 3, 15], np.int32)
    packs = build_pack_index(
        lengths, capacity=12, strategy="best_fit", seed=0, alignment=4, overlong="truncate"
    )
    statistics = packs.statistics(lengths)
    # [15 cut to 12], [7 in 8 slots, 3 in 4 slots]
    assert (statistics.num_packs, statistics.num_pieces) == (2, 3)
    assert (statistics.alignment_padding, statistics.tail_padding) == (2, 0)
    assert statistics.fill == 22 / 24
    assert statistics.sum_squares == 144 + 64 + 16
    assert (packs.ledger.truncated_documents, packs.ledger.truncated_tokens) == (1, 3)
    assert packs.ledger.packed_tokens == 22


def test_statistics_of_other_lengths_are_refused() -> None:
    packs = build_pack_index([5, 5], capacity=10, strategy="random", seed=0)
    with pytest.raises(DsmError, match="built for other documents"):
        packs.statistics(np.array([5, 6], np.int32))
    with pytest.raises(DsmError, match="names document 1 of 1"):
        packs.statistics(np.array([5], np.int32))


def test_totals_and_costs_of_a_pack() -> None:
    lengths = np.array([3, 5], np.int32)
    packs = build_pack_index(lengths, capacity=12, strategy="random", seed=0, alignment=4)
    totals = packs.totals(lengths)
    assert (totals.tokens.tolist(), totals.slots.tolist()) == ([8], [12])
    assert totals.squares.tolist() == [16 + 64]
    assert totals.costs(PackCost(token=10, square=2)).tolist() == [120 + 160]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_and_arena_change_nothing(strategy) -> None:
    lengths = np.tile(_lengths(16_000), 100)  # enough for three threads to be started
    arena = PackArena()
    alone = build_pack_index(lengths, capacity=4096, strategy=strategy, seed=3)
    for threads in (2, 3):
        packs = build_pack_index(
            lengths, capacity=4096, strategy=strategy, seed=3, threads=threads, arena=arena
        )
        for ours, theirs in zip(packs.arrays(), alone.arrays(), strict=True):
            assert np.array_equal(ours, theirs)
        del packs, ours


def test_an_arena_gets_its_memory_back_and_lends_it_again() -> None:
    lengths = np.tile(_lengths(16_000), 100)
    arena = PackArena()

    def build() -> PackIndex:
        return build_pack_index(lengths, capacity=4096, strategy="random", seed=0, arena=arena)

    packs = build()
    view = packs.documents[5:7]
    expected = view.tolist()
    del packs
    gc.collect()
    without_the_view = arena.idle_bytes
    again = build()
    assert view.tolist() == expected  # its block was not lent again
    del view, again
    gc.collect()
    idle = arena.idle_bytes
    assert idle >= without_the_view + lengths.nbytes
    for _ in range(3):
        build()
    assert arena.idle_bytes == idle  # nothing new was taken


@pytest.mark.parametrize("epoch", [0, 1])
def test_strategies_of_the_stream_share_its_order(epoch: int) -> None:
    lengths = _lengths(3000)
    random, split, first_fit = (
        build_pack_index(lengths, capacity=4096, strategy=strategy, seed=7, epoch=epoch)
        for strategy in ("random", "concat_split", "first_fit_shuffle")
    )
    stream = random.documents.tolist()
    assert list(dict.fromkeys(split.documents.tolist())) == stream
    place = {document: i for i, document in enumerate(stream)}
    for i in range(first_fit.num_packs):
        places = [place[document] for document in first_fit.pack(i).tolist()]
        assert places == sorted(places)


@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize("longest", [40, 3000])
def test_concat_split_cuts_the_stream_at_the_capacity(alignment: int, longest: int) -> None:
    capacity = 64
    lengths = np.random.default_rng(0).integers(1, longest + 1, 500).astype(np.int32)
    stream = build_pack_index(
        lengths, capacity=1 << 23, strategy="random", seed=4, alignment=alignment
    )
    slots = [
        (document, t if t < lengths[document] else None)
        for document in stream.documents.tolist()
        for t in range(-(-int(lengths[document]) // alignment) * alignment)
    ]
    packs = build_pack_index(
        lengths, capacity=capacity, strategy="concat_split", seed=4, alignment=alignment
    )
    assert packs.begins is not None
    assert packs.num_packs == -(-len(slots) // capacity)
    for i in range(packs.num_packs):
        expected = slots[i * capacity : (i + 1) * capacity]
        documents = list(dict.fromkeys(document for document, _ in expected))
        assert packs.pack(i).tolist() == documents
        assert packs.begins[i] == expected[0][1]
    statistics = packs.statistics(lengths)
    assert statistics.fill * packs.num_packs * capacity == pytest.approx(lengths.sum())
    assert statistics.alignment_padding == len(slots) - lengths.sum()


def test_first_fit_takes_the_first_pack_with_room() -> None:
    lengths = _lengths(2000)
    stream = build_pack_index(lengths, capacity=1 << 24, strategy="random", seed=5).documents
    rooms: list[int] = []
    expected: list[list[int]] = []
    for document in stream.tolist():
        length = int(lengths[document])
        pack = next((i for i, room in enumerate(rooms) if room >= length), len(rooms))
        if pack == len(rooms):
            rooms.append(4096)
            expected.append([])
        rooms[pack] -= length
        expected[pack].append(document)
    packs = build_pack_index(lengths, capacity=4096, strategy="first_fit_shuffle", seed=5)
    assert [packs.pack(i).tolist() for i in range(packs.num_packs)] == expected


def test_balanced_packs_cost_nearly_the_same_and_few_are_more() -> None:
    lengths = _lengths(20_000)
    cost = PackCost(token=100, square=1)
    spread, fill = {}, {}
    for strategy in ("best_fit", "random", "balanced"):
        packs = build_pack_index(lengths, capacity=4096, strategy=strategy, seed=0, cost=cost)
        costs = packs.totals(lengths).costs(cost)
        spread[strategy] = costs.std() / costs.mean()
        fill[strategy] = packs.statistics(lengths).fill
    assert spread["balanced"] < 0.5 * spread["best_fit"]
    assert spread["balanced"] < 0.75 * spread["random"]
    assert fill["balanced"] > 0.98 > fill["random"]


def test_balanced_puts_a_document_into_the_pack_of_least_cost_that_has_room() -> None:
    # Three packs at least: 7, 6 and 4 open them; 3 joins the 4, then 2 the 6.
    cost = PackCost(token=1, square=0)
    packs = build_pack_index([7, 6, 4, 3, 2], capacity=10, strategy="balanced", seed=0, cost=cost)
    found = sorted(sorted(packs.pack(i).tolist()) for i in range(packs.num_packs))
    assert found == [[0], [1, 4], [2, 3]]
    # 6 and 5 fill two packs so far that the second 5 and the 4 go where there is room, not least.
    packs = build_pack_index([6, 5, 5, 4], capacity=10, strategy="balanced", seed=0, cost=cost)
    found = sorted(sorted(packs.pack(i).tolist()) for i in range(packs.num_packs))
    assert found == [[0, 3], [1, 2]]


@pytest.mark.parametrize("strategy", WHOLE)
def test_documents_take_multiples_of_the_alignment(strategy) -> None:
    lengths = _lengths(800)
    aligned = -(-lengths // 16) * 16
    packs = build_pack_index(lengths, capacity=4096, strategy=strategy, seed=2, alignment=16)
    same = build_pack_index(aligned, capacity=4096, strategy=strategy, seed=2)
    assert np.array_equal(packs.documents, same.documents)
    assert np.array_equal(packs.offsets, same.offsets)
    assert packs.statistics(lengths).alignment_padding == aligned.sum() - lengths.sum()


@pytest.mark.parametrize("strategy", WHOLE)
def test_overlong_documents_are_dropped_and_counted(strategy) -> None:
    lengths = np.array([3, 20, 10, 11, 4], np.int32)
    packs = build_pack_index(lengths, capacity=10, strategy=strategy, seed=0, overlong="drop")
    assert sorted(packs.documents.tolist()) == [0, 2, 4]
    assert (packs.ledger.documents, packs.ledger.tokens) == (5, 48)
    assert (packs.ledger.dropped_documents, packs.ledger.dropped_tokens) == (2, 31)
    assert packs.ledger.packed_tokens == packs.totals(lengths).tokens.sum() == 17
    assert packs.num_documents == 5 and packs.matches(lengths)
    none = build_pack_index([11], capacity=10, strategy=strategy, seed=0, overlong="drop")
    assert none.num_packs == 0 and none.documents.tolist() == []


@pytest.mark.parametrize("strategy", WHOLE)
def test_overlong_documents_are_truncated_and_counted(strategy) -> None:
    lengths = np.array([3, 20, 10, 11, 4], np.int32)
    packs = build_pack_index(lengths, capacity=10, strategy=strategy, seed=0, overlong="truncate")
    assert sorted(packs.documents.tolist()) == [0, 1, 2, 3, 4]
    assert (packs.ledger.truncated_documents, packs.ledger.truncated_tokens) == (2, 11)
    assert packs.ledger.packed_tokens == packs.totals(lengths).tokens.sum() == 37
    alone = [packs.pack(i).tolist() for i in range(packs.num_packs)]
    assert [1] in alone and [3] in alone


def test_concat_split_needs_no_policy() -> None:
    lengths = np.array([25], np.int32)
    packs = build_pack_index(lengths, capacity=10, strategy="concat_split", seed=0)
    assert packs.documents.tolist() == [0, 0, 0]
    assert packs.begins is not None and packs.begins.tolist() == [0, 10, 20]
    assert packs.ledger.packed_tokens == 25


def test_dealt_packs_cost_every_rank_about_the_same() -> None:
    random = np.random.default_rng(0)
    for ranks, rows in [(1, 5), (2, 1), (4, 8), (8, 32)]:
        costs = random.lognormal(10, 1, ranks * rows).astype(np.int64)
        dealt = deal_packs(costs, ranks)
        assert sorted(dealt.tolist()) == list(range(len(costs)))
        sums = [costs[dealt[rank::ranks]].sum() for rank in range(ranks)]
        plain = [costs[rank::ranks].sum() for rank in range(ranks)]
        assert max(sums) - min(sums) <= max(plain) - min(plain)
        assert max(sums) - min(sums) <= costs.max()
        table = costs[dealt].reshape(rows, ranks)  # a row is one micro-batch of all ranks
        assert all(table[i].min() >= table[i + 1].max() for i in range(rows - 1))


def test_packs_that_cannot_be_dealt_evenly_are_refused() -> None:
    with pytest.raises(DsmError, match="3 packs cannot be dealt evenly to 2 ranks"):
        deal_packs(np.array([1, 2, 3]), 2)
    with pytest.raises(DsmError, match="to 0 ranks"):
        deal_packs(np.array([1, 2, 3]), 0)


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


@pytest.mark.parametrize(("token", "square"), [(0, 0), (-1, 1), ((1 << 31) + 1, 1), (1, 129)])
def test_costs_out_of_range_are_rejected(token: int, square: int) -> None:
    with pytest.raises(DsmError, match=f"found {token} and {square}"):
        PackCost(token=token, square=square)


def test_sums_of_squares_beyond_64_bits_are_right() -> None:
    lengths = np.full(40_000, 1 << 24, np.int32)
    packs = build_pack_index(lengths, capacity=1 << 24, strategy="best_fit", seed=0)
    assert packs.statistics(lengths).sum_squares == 40_000 << 48
    assert deal_packs(np.full(512, 1 << 56), 2).tolist()[:2] in ([0, 1], [1, 0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_what_was_built_covers_its_documents(strategy, overlong) -> None:
    lengths = _lengths(500)
    packs = build_pack_index(
        lengths, capacity=512, strategy=strategy, seed=0, overlong=overlong, alignment=4
    )
    packs.check_coverage(lengths)


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        ("random", {"documents": [0, 0, 2]}, "document 0 goes on at token 0 after 5"),
        (
            "random",
            {"documents": [0, 1], "offsets": [0, 2]},
            "hold 0 of the 7 tokens of document 2",
        ),
        ("concat_split", {"begins": [0, 1]}, r"document \d goes on at token 1 after [234]"),
    ],
)
def test_packs_of_no_plan_are_found(strategy, change, message: str) -> None:
    lengths = np.array([5, 6, 7], np.int32)
    packs = build_pack_index(
        lengths, capacity=20 if strategy == "random" else 9, strategy=strategy, seed=0
    )
    dtypes = {"documents": np.int32, "offsets": np.int64, "begins": np.int32}
    forged = dataclasses.replace(
        packs, **{name: np.array(value, dtypes[name]) for name, value in change.items()}
    )
    packs.check_coverage(lengths)
    with pytest.raises(DsmError, match=message):
        forged.check_coverage(lengths)
    wrong = dataclasses.replace(packs.ledger, dropped_documents=1)
    with pytest.raises(DsmError, match="the ledger of the packs is wrong"):
        dataclasses.replace(packs, ledger=wrong).check_coverage(lengths)


@pytest.mark.parametrize(("capacity", "alignment"), [(10, 0), (10, 3), (0, 1), (1 << 25, 1)])
def test_statistics_of_a_forged_layout_are_refused(capacity: int, alignment: int) -> None:
    packs = build_pack_index([5], capacity=10, strategy="random", seed=0)
    forged = dataclasses.replace(packs, capacity=capacity, alignment=alignment)
    with pytest.raises(DsmError, match="multiple of the alignment"):
        forged.statistics([5])
