"""The store of one start: what an earlier start left in torchrun's store is not taken for it."""

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from dsm_engine.parallel import rendezvous

_SOON = timedelta(seconds=20)


def _start(monkeypatch: pytest.MonkeyPatch, store: Any, world_size: int) -> list[Any]:
    """The stores that the ranks of a start get."""
    ranks = threading.local()

    def environment(timeout: timedelta) -> Any:
        yield store, ranks.mine, world_size

    monkeypatch.setattr(rendezvous, "_environment", environment)
    found: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        ranks.mine = rank
        found[rank] = rendezvous.store_of_this_start(_SOON)

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(rank, ranks) for _, rank, ranks in found] == [(r, world_size) for r in range(3)]
    return [item[0] for item in found]


def test_ranks_of_a_start_share_a_store_and_see_nothing_of_another_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.HashStore()
    first = _start(monkeypatch, store, 3)
    first[0].set("address", "of the first start")
    assert first[2].get("address") == b"of the first start"
    second = _start(monkeypatch, store, 3)
    assert not second[1].check(["address"])
    second[2].set("address", "of the second start")
    assert second[0].get("address") == b"of the second start"
    assert first[1].get("address") == b"of the first start"


def test_a_question_that_a_killed_rank_left_is_not_taken_for_that_of_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.HashStore()
    store.set("dsm/start/asks/1", "left")
    stores = _start(monkeypatch, store, 3)
    stores[1].set("x", "1")
    assert stores[0].check(["x"]) and stores[2].check(["x"])


def test_ranks_that_do_not_come_are_named() -> None:
    with pytest.raises(dist.DistStoreError, match=r"ranks \[1, 2\] did not join"):
        rendezvous._hand_out(dist.HashStore(), 3, timedelta(seconds=0.1))
