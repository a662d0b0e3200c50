"""A rank that hangs: stacks of all ranks, and an end within the time-out.

Every rank has a thread that knows when its main thread last said what it is about to do. A rank
that is late tells the others through the job's store; each writes its stacks to RUN/hang and
ends. Where the store cannot be reached either, the others are late themselves: they wait for the
same step.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder
from dsm_engine.training.faults.exits import HANG, LOST_RANK, LostRank, leave_at_once, say

_POLL_S = 1.0
_GRACE_S = 3.0
"""From the first rank's alarm until it ends: the others write their stacks in it."""
_LEAVING_S = 20.0
"""For a rank that lost another to take the job apart; behind it, it ends all the same."""
_LOST_WORDS = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")


class Watchdog:
    """Ends the process with exit code 74 when a phase takes longer than `timeout_s`.

    The thread needs the interpreter's lock. Where native code holds it, faulthandler's own thread
    writes the stacks to standard error and ends the process, with exit code 1.
    """

    _runs = 0

    def __init__(self, run: Path, *, timeout_s: float) -> None:
        Watchdog._runs += 1
        self._run = run
        self._timeout_s = self._allowed_s = timeout_s
        self._rank = dist.get_rank()
        self._phase = "the start-up"
        self._since = time.monotonic()
        self._alarm = _Alarm(f"dsm/hang/{Watchdog._runs}") if dist.get_world_size() > 1 else None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, phase: str, *, within_s: float = 0.0) -> None:
        """The main thread begins a phase: a step, a validation, a save. Costs no wait.

        One that takes long by its nature has `within_s` where that is more than the time-out.
        """
        self._phase, self._since = phase, time.monotonic()
        self._allowed_s = max(self._timeout_s, within_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._alarm is not None:
            self._alarm.close()

    @contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Collectives that fail because of another rank become `LostRank`, which is one line."""
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_rank(error):
                raise
            reason = " ".join(str(error).split())[:200]
            fault = f"lost another rank in {self._phase} ({reason}); go on with --resume"
            last_resort = threading.Timer(_LEAVING_S, leave_at_once, [LOST_RANK, fault])
            last_resort.daemon = True
            last_resort.start()
            raise LostRank(fault) from error

    def _watch(self) -> None:
        poll_s = min(_POLL_S, self._timeout_s / 4)
        while not self._done.wait(poll_s):
            _arm_faulthandler(self._allowed_s + poll_s)
            seconds = time.monotonic() - self._since
            if self._alarm is not None and self._alarm.heard():
                self._end(f"another rank hangs; this one was in {self._phase}")
            if seconds > self._allowed_s:
                if self._alarm is not None:
                    self._alarm.ring()
                self._end(f"no progress for {seconds:.0f} s in {self._phase}")

    def _end(self, reason: str) -> None:
        try:
            where = f"stacks are in {self._write_stacks(reason)}"
        except (OSError, DsmError) as error:
            where = f"its stacks cannot be written ({error})"
        say(f"{reason}; {where}")
        if self._alarm is not None:
            time.sleep(_GRACE_S)
        leave_at_once(HANG, f"ending with code {HANG}; go on with --resume")

    def _write_stacks(self, reason: str) -> Path:
        path = self._run / "hang" / f"rank_{self._rank}.txt"
        make_folder(path.parent)
        with path.open("w", encoding="utf-8") as file:
            file.write(
                f"rank {self._rank} on {socket.gethostname()}, pid {os.getpid()}: {reason}\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path


class _Alarm:
    """A word from any rank to all, through the job's store, that never blocks the caller."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._heard = threading.Event()
        self._closed = threading.Event()
        # Connections of their own: the job's is locked while it waits.
        store: Any = dist.distributed_c10d._get_default_store()
        self._listening, self._ringing = store.clone(), store.clone()
        threading.Thread(target=self._listen, name="watchdog-alarm", daemon=True).start()

    def heard(self) -> bool:
        """Whether some rank has rung."""
        return self._heard.is_set()

    def ring(self) -> None:
        """Tells all ranks."""
        threading.Thread(target=self._ring, daemon=True).start()

    def close(self) -> None:
        """Ends listening, when the store next answers."""
        self._closed.set()

    def _listen(self) -> None:
        try:
            while not self._closed.wait(_POLL_S):
                if self._listening.check([self._key]):
                    self._heard.set()
                    return
        except RuntimeError:
            return  # the store went with the rank that held it: the collectives show it

    def _ring(self) -> None:
        try:
            self._ringing.set(self._key, str(dist.get_rank()))
        except RuntimeError as error:
            say(f"the other ranks cannot be told: {error}")


def _arm_faulthandler(timeout_s: float) -> None:
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__.fileno())


def _is_lost_rank(error: RuntimeError) -> bool:
    words = str(error)
    return isinstance(error, dist.DistError) or any(word in words for word in _LOST_WORDS)
