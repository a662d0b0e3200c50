"""SIGTERM and SIGUSR1: finish the step, save, leave with 0.

A thread reads the signals from a pipe that Python's own handler writes into, so that a second one
and the deadline work while the main thread is blocked in a collective.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Self

from dsm_engine.training.faults.exits import STOP_TOO_SLOW, leave_at_once, say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_S = 2.0
"""Signals so close behind the first are the same request: Slurm sends one to every process and
torchrun passes its own on."""


class StopRequest:
    """Notes the signals while it is entered, in the main thread.

    The first is a request; one that comes more than `SAME_REQUEST_S` later ends the process at
    once, with 128 and its number. Processes forked meanwhile ignore both signals: those that write
    a checkpoint must end their work.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._within_s: float | None = None
        self._is_open = False
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested_at is not None

    def limit(self, within_s: float) -> None:
        """From a request on the process has so many seconds before it ends with exit code 75."""
        self._within_s = within_s
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")  # the thread looks at the limit

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._is_open = True
        fd = self._writer.fileno()
        self._previous_fd = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _noted) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="stop-request", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([self._reader], [], [], self._seconds_left())
            if not ready:
                leave_at_once(
                    STOP_TOO_SLOW,
                    f"did not stop within faults.stop_within_s={self._within_s:g} seconds; "
                    f"what was done since the last checkpoint is lost",
                )
            received = self._reader.recv(64)
            if not received:
                return
            for number in received:
                if number in SIGNALS:
                    self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number == signal.SIGTERM and lost_a_sibling():
            leave_at_once(128 + number, "torchrun ends the job: a rank of this machine is gone")
        if self._requested_at is None:
            self._requested_at = now
            say(f"{number.name}: finishing the step, saving, then leaving")
        elif now - self._requested_at > SAME_REQUEST_S:
            leave_at_once(128 + number, f"{number.name} again: leaving at once")

    def _seconds_left(self) -> float | None:
        if self._requested_at is None or self._within_s is None:
            return None
        return max(0.0, self._requested_at + self._within_s - time.monotonic())

    def _leave_to_parent(self) -> None:
        if self._is_open:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def lost_a_sibling() -> bool:
    """Whether torchrun's agent has fewer ranks on this machine than it started.

    It sends SIGTERM when it is told to stop, and also when a rank has died. There is nobody left to
    finish a step with then.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    return _num_ranks_of(os.getppid()) < int(os.environ["LOCAL_WORLD_SIZE"])


def _num_ranks_of(agent: int) -> int:
    """Living children of torchrun's agent that are ranks."""
    ranks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == agent and state != "Z":
                ranks += b"\0LOCAL_RANK=" in b"\0" + (folder / "environ").read_bytes()
    return ranks


def _noted(number: int, frame: object) -> None:
    """Python writes the signal into the pipe; without a handler there is nothing to write."""
