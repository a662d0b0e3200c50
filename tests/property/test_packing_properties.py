"""What holds for every packing: documents once each and whole, no pack over its capacity."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.pack_index import PackIndex, PackOrder, build_pack_index

STRATEGIES = st.sampled_from(["random", "best_fit"])
WORDS = st.integers(0, (1 << 64) - 1)


@st.composite
def _plans(draw) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 200))
    longest = draw(st.integers(1, capacity))
    return draw(st.lists(st.integers(1, longest), max_size=300)), capacity


@given(plan=_plans(), strategy=STRATEGIES, seed=WORDS, epoch=WORDS)
@settings(deadline=None)
def test_every_document_stands_in_one_pack_and_no_pack_overflows(
    plan, strategy, seed, epoch
) -> None:
    lengths, capacity = plan
    packs = build_pack_index(lengths, capacity=capacity, strategy=strategy, seed=seed, epoch=epoch)
    assert sorted(packs.documents.tolist()) == list(range(len(lengths)))
    for i in range(packs.num_packs):
        tokens = sum(lengths[document] for document in packs.pack(i))
        assert 0 < tokens <= capacity
    assert packs.num_packs >= -(-sum(lengths) // capacity)


@given(plan=_plans(), strategy=STRATEGIES, seed=WORDS)
@settings(deadline=None)
def test_the_same_seed_gives_the_same_bytes(plan, strategy, seed) -> None:
    lengths, capacity = plan
    first, second = (
        build_pack_index(lengths, capacity=capacity, strategy=strategy, seed=seed) for _ in range(2)
    )
    assert first.offsets.tobytes() == second.offsets.tobytes()
    assert first.documents.tobytes() == second.documents.tobytes()


@given(plan=_plans(), seed=WORDS)
@settings(deadline=None)
def test_best_fit_leaves_no_two_packs_that_fit_into_one(plan, seed) -> None:
    lengths, capacity = plan
    packs = build_pack_index(lengths, capacity=capacity, strategy="best_fit", seed=seed)
    tokens = np.sort(
        [sum(lengths[document] for document in packs.pack(i)) for i in range(packs.num_packs)]
    )
    assert len(tokens) < 2 or tokens[0] + tokens[1] > capacity


@given(num_packs=st.integers(1, 2000), seed=WORDS, epoch=st.integers(0, 1 << 40))
@settings(deadline=None, max_examples=40)
def test_each_epoch_of_the_order_is_a_bijection(num_packs, seed, epoch) -> None:
    order = PackOrder(num_packs, seed=seed)
    start = epoch * num_packs
    assert sorted(order.pack_at(start + i) for i in range(num_packs)) == list(range(num_packs))


@given(plan=_plans(), strategy=STRATEGIES, seed=WORDS, epoch=WORDS)
@settings(deadline=None, max_examples=40)
def test_a_saved_index_is_loaded_unchanged(tmp_path_factory, plan, strategy, seed, epoch) -> None:
    lengths, capacity = plan
    packs = build_pack_index(lengths, capacity=capacity, strategy=strategy, seed=seed, epoch=epoch)
    path = tmp_path_factory.mktemp("packs") / "packs"
    packs.save(path)
    loaded = PackIndex.load(path)
    assert (loaded.seed, loaded.epoch, loaded.capacity) == (seed, epoch, capacity)
    assert np.array_equal(loaded.offsets, packs.offsets)
    assert np.array_equal(loaded.documents, packs.documents)
