"""What holds for every packing: documents once each, no pack over its capacity, the same bytes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.pack_file import load_pack_index, save_pack_index
from dsm_engine.data.pack_index import (
    OVERLONG_POLICIES,
    STRATEGIES,
    PackIndex,
    build_pack_index,
    deal_packs,
)
from dsm_engine.data.pack_order import PackOrder

WORDS = st.integers(0, (1 << 64) - 1)


@st.composite
def _plans(draw) -> dict:
    alignment = draw(st.sampled_from([1, 2, 3, 8]))
    capacity = alignment * draw(st.integers(1, 200 // alignment))
    overlong = draw(st.sampled_from(OVERLONG_POLICIES))
    longest = draw(st.integers(1, capacity if overlong == "error" else 2 * capacity))
    return {
        "lengths": np.array(draw(st.lists(st.integers(1, longest), max_size=300)), np.int32),
        "capacity": capacity,
        "strategy": draw(st.sampled_from(STRATEGIES)),
        "seed": draw(WORDS),
        "epoch": draw(WORDS),
        "alignment": alignment,
        "overlong": overlong,
    }


def _build(plan: dict) -> PackIndex:
    return build_pack_index(plan["lengths"], **{k: plan[k] for k in plan if k != "lengths"})


def _pieces(packs: PackIndex, lengths: np.ndarray):
    """(pack, document, begin, end, slots begin) of everything that stands in packs."""
    for i in range(packs.num_packs):
        begin = 0 if packs.begins is None else int(packs.begins[i])
        used = 0
        for document in packs.pack(i).tolist():
            end = min(int(lengths[document]), begin + packs.capacity - used)
            yield i, document, begin, end, used
            used += min(
                -(-(end - begin) // packs.alignment) * packs.alignment, packs.capacity - used
            )
            begin = 0


@given(plan=_plans())
def test_every_token_stands_in_one_pack_or_in_the_ledger(plan) -> None:
    lengths, packs = plan["lengths"], _build(plan)
    covered: dict[int, list[tuple[int, int]]] = {}
    for _, document, begin, end, at in _pieces(packs, lengths):
        assert begin < end <= begin + packs.capacity - at
        assert at % packs.alignment == 0
        covered.setdefault(document, []).append((begin, end))
    ledger = packs.ledger
    assert (ledger.documents, ledger.tokens) == (len(lengths), lengths.sum())
    dropped, cut, lost = 0, 0, 0
    for document, length in enumerate(lengths.tolist()):
        pieces = sorted(covered.get(document, []))
        if not pieces:
            assert length > packs.capacity and packs.overlong == "drop"
            dropped += 1
            continue
        assert [a for a, _ in pieces] == [0, *(b for _, b in pieces[:-1])]
        if pieces[-1][1] < length:
            assert pieces == [(0, packs.capacity)] and packs.overlong == "truncate"
            cut += 1
            lost += length - packs.capacity
        assert len(pieces) == 1 or packs.strategy == "concat_split"
    assert (ledger.dropped_documents, ledger.truncated_documents) == (dropped, cut)
    assert ledger.truncated_tokens == lost
    assert packs.totals(lengths).tokens.sum() == ledger.packed_tokens
    statistics = packs.statistics(lengths)
    slots = packs.num_packs * packs.capacity
    assert slots == ledger.packed_tokens + statistics.padding_tokens


@given(plan=_plans())
def test_every_pack_is_full_or_could_not_take_what_came_next(plan) -> None:
    packs, slots = _build(plan), _build(plan).totals(plan["lengths"]).slots
    assert (slots <= packs.capacity).all() and (slots > 0).all()
    if packs.strategy == "concat_split":
        assert (slots[:-1] == packs.capacity).all()
    if packs.strategy in ("best_fit", "first_fit_shuffle") and len(slots) > 1:
        least = np.sort(slots)
        assert least[0] + least[1] > packs.capacity  # no two packs fit into one


@given(plan=_plans())
def test_the_same_seed_gives_the_same_bytes(plan) -> None:
    first, second = _build(plan), _build(plan)
    for ours, theirs in zip(first.arrays(), second.arrays(), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert first.content_xxh3() == second.content_xxh3()


@given(num_packs=st.integers(1, 2000), seed=WORDS, epoch=st.integers(0, 1 << 40))
@settings(max_examples=40)
def test_each_epoch_of_the_order_is_a_bijection(num_packs, seed, epoch) -> None:
    order = PackOrder(num_packs, seed=seed)
    start = epoch * num_packs
    assert sorted(order.pack_at(start + i) for i in range(num_packs)) == list(range(num_packs))


@given(costs=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=64), ranks=st.integers(1, 8))
def test_dealing_is_a_permutation_with_rows_of_falling_cost(costs, ranks) -> None:
    costs = np.array(costs * ranks, np.int64)
    dealt = deal_packs(costs, ranks)
    assert sorted(dealt.tolist()) == list(range(len(costs)))
    rows = costs[dealt].reshape(-1, ranks)
    assert (rows.min(axis=1)[:-1] >= rows.max(axis=1)[1:]).all()
    sums = rows.sum(axis=0)
    assert sums.max() - sums.min() <= costs.max()


@given(plan=_plans())
@settings(max_examples=40)
def test_a_saved_index_is_loaded_unchanged(tmp_path_factory, plan) -> None:
    packs = _build(plan)
    path = tmp_path_factory.mktemp("packs") / "packs"
    save_pack_index(packs, path)
    loaded = load_pack_index(path)
    for field in ("seed", "epoch", "capacity", "alignment", "overlong", "ledger", "strategy"):
        assert getattr(loaded, field) == getattr(packs, field)
    for ours, theirs in zip(loaded.arrays(), packs.arrays(), strict=True):
        assert np.array_equal(ours, theirs)
