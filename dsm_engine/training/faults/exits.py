"""How a run that did not come to its end leaves, and the exit codes that say so."""

import multiprocessing
import os
import socket
import sys
from typing import NoReturn

from dsm_engine.errors import DsmError

NON_FINITE = 3
"""The loss or the gradient was not finite, and the recipe says that this ends the run."""
HANG = 74
"""Some rank made no progress for `faults.hang_timeout_s`."""
STOP_TOO_SLOW = 75
"""A signal asked for the end, and `faults.stop_within_s` were over before all was saved."""
LOST_RANK = 76
"""The connection to another rank broke, or a collective ran out of time."""
FOLDER_TAKEN = 77
"""Another run has taken the run's folder over."""


class RunFault(DsmError):
    """Ends a run with an exit code of its own and one line."""

    exit_code: int


class NonFiniteStep(RunFault):
    """A step with a loss or a gradient that is not finite, under the policy `abort`."""

    exit_code = NON_FINITE


class LostRank(RunFault):
    """A collective that failed because of another rank."""

    exit_code = LOST_RANK


def say(text: str) -> None:
    """One line on standard error that names the rank; safe from any thread."""
    rank = os.environ.get("RANK")
    who = "" if rank is None else f" (rank {rank} on {socket.gethostname()})"
    line = f"dsm train{who}: {text}\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode(errors="replace"))


def leave_at_once(exit_code: int, text: str) -> NoReturn:
    """Ends the process and its children from any thread, whatever the main thread is in."""
    say(text)
    for child in multiprocessing.active_children():
        child.kill()  # nobody is left that would end them
    os._exit(exit_code)
