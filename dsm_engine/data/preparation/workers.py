"""Processes that turn blocks into parts, and their results in order.

Forked, so that what the parent has loaded is shared. A worker ends when its parent does, however
that ended and whatever it is at: the kernel kills it then.
"""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from dsm_engine.errors import DsmError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_AHEAD = 2  # tasks a worker may be ahead of the oldest result that is still missing

Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0))


class Workers(Generic[Task, Result]):
    """Calls `work` for each task in `num_workers` processes; in this one where it is 1.

    A context manager: leaving it ends the processes.
    """

    def __init__(self, work: Callable[[Task], Result], num_workers: int) -> None:
        if num_workers < 1:
            raise DsmError(f"workers: expected at least 1, found {num_workers}")
        self._work = work
        self._num_workers = num_workers
        self._processes: dict[Connection, Any] = {}

    def __enter__(self) -> "Workers[Task, Result]":
        try:
            for _ in range(self._num_workers if self._num_workers > 1 else 0):
                self._start()
        except OSError as error:
            self.__exit__()
            raise DsmError(
                f"workers: {self._num_workers} processes cannot be started:"
                f" {error.strerror or error}; give fewer with --workers"
            ) from error
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        arguments = theirs, self._work, [*self._processes, ours], os.getpid()
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._processes[ours] = process

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
            process.join()
        self._processes.clear()

    def map(self, tasks: Iterator[Task | None]) -> Iterator[Result | None]:
        """The results, in the order of the tasks; a task that is None has the result None.

        Tasks are taken as there is room for them. Raises what `work` raised, or DsmError where a
        process ended.
        """
        if self._num_workers == 1:
            for task in tasks:
                yield None if task is None else self._work(task)
            return
        order: deque[int] = deque()
        results: dict[int, Result | None] = {}
        idle = deque(self._processes)
        running: dict[Connection, int] = {}
        limit = self._num_workers * (_AHEAD + 1)
        number = 0
        more = True
        while more or order:
            while more and idle and len(order) < limit:
                try:
                    task = next(tasks)
                except StopIteration:
                    more = False
                    break
                order.append(number)
                if task is None:
                    results[number] = None
                else:
                    connection = idle.popleft()
                    self._send(connection, task)
                    running[connection] = number
                number += 1
            while order and order[0] in results:
                yield results.pop(order.popleft())
            if running and (not more or not idle or len(order) >= limit):
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    results[running.pop(connection)] = self._receive(connection)
                    idle.append(connection)

    def _send(self, connection: Connection, task: Task) -> None:
        try:
            connection.send(task)
        except OSError:
            self._receive(connection)  # says how the process ended

    def _receive(self, connection: Connection) -> Result:
        try:
            error, result = connection.recv()
        except (EOFError, OSError) as fault:
            process = self._processes[connection]
            process.join()
            raise DsmError(
                f"a worker process {_ending(process.exitcode)}; what is done so far is kept, and"
                " the same command goes on from there, with --workers N for fewer of them"
            ) from fault
        if error is not None:
            raise error
        return result


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(-exit_code, f"signal {-exit_code}")
    memory = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"


def _serve(
    connection: Connection, work: Callable[[Any], Any], others: list[Connection], parent: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    for other in others:
        other.close()
    try:
        while True:
            task = connection.recv()
            try:
                reply = None, work(task)
            except DsmError as error:
                reply = DsmError(str(error)), None
            except Exception as error:  # noqa: BLE001 - raised again by the parent
                import traceback

                reply = RuntimeError("".join(traceback.format_exception(error))), None
            connection.send(reply)
    except (EOFError, OSError):  # the parent is gone
        pass
