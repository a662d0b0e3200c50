"""The store of one start of a job.

torchrun keeps one store over its restarts, and ranks of the next start find the addresses of the
last: gloo then connects to ports where nobody listens (torch 2.13; it once had a prefix for each
attempt). How often an agent has restarted does not tell starts apart, for agents count different
restarts. So rank 0 draws a name, and hands it to each rank that asks with a number of its own.
"""

import secrets
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_POLL_S = 0.02
_PREFIX = "dsm/start"


def store_of_this_start(timeout: timedelta) -> tuple[Any, int, int]:
    """The job's store under a prefix only the ranks of this start know; this rank; the ranks.

    Every rank calls it. Raises torch's DistStoreError where ranks are missing until the time-out.
    """
    store, rank, world_size = next(iter(_environment(timeout)))
    if rank == 0:
        name = _hand_out(store, world_size, timeout)
    else:
        name = _ask(store, rank)
    of_start: Any = dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"{_PREFIX}/{name}", store
    )
    return of_start, rank, world_size


def _environment(timeout: timedelta) -> Iterable[tuple[Any, int, int]]:
    return dist.rendezvous("env://", timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]


def _ask(store: Any, rank: int) -> str:
    number = secrets.token_hex(8)
    store.set(f"{_PREFIX}/asks/{rank}", number)
    name = store.get(f"{_PREFIX}/answers/{rank}/{number}").decode()
    store.set(f"{_PREFIX}/{name}/has/{rank}", "")
    return name


def _hand_out(store: Any, world_size: int, timeout: timedelta) -> str:
    """Answers every rank's newest question until all have the name; old questions stand there of
    earlier starts."""
    name = secrets.token_hex(8)
    answered: dict[int, bytes] = {}
    waiting = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while waiting:
        for rank in sorted(waiting):
            if not store.check([f"{_PREFIX}/asks/{rank}"]):
                continue
            number = store.get(f"{_PREFIX}/asks/{rank}")
            if answered.get(rank) != number:
                store.set(f"{_PREFIX}/answers/{rank}/{number.decode()}", name)
                answered[rank] = number
            if store.check([f"{_PREFIX}/{name}/has/{rank}"]):
                waiting.discard(rank)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(waiting)} did not join within {timeout}")
        time.sleep(_POLL_S)
    return name
