"""The order of the packs: a permutation an epoch, from any position."""

from collections import Counter

import pytest

from dsm_engine.data.pack_order import PackOrder
from dsm_engine.errors import DsmError


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
    with pytest.raises(DsmError, match=r"at least 0 .*found -1"):
        PackOrder(5, seed=0).pack_at(-1)
    with pytest.raises(DsmError, match="seed must be"):
        PackOrder(5, seed=-1)


def test_positions_and_counts_beyond_63_bits_are_rejected() -> None:
    with pytest.raises(DsmError, match="at least one pack"):
        PackOrder(1 << 63, seed=0)
    with pytest.raises(DsmError, match="below 2\\^63, found 9223372036854775808"):
        PackOrder(5, seed=0).pack_at(1 << 63)
