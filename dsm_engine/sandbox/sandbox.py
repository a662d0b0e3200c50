"""Programs in, what they printed out: several drivers, each in a bubblewrap of its own.

A program runs without network, without the machine's files, with limits on time, memory, output,
files and processes. Where bubblewrap is missing, `Sandbox()` raises and `sandbox_status()` says
what to install; `Sandbox(unsafe=True)` runs programs without it, which nothing does by itself.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Lock
from types import TracebackType
from typing import Any

from dsm_engine.errors import DsmError
from dsm_engine.sandbox.commands import (
    DRIVER_ENVIRONMENT,
    driver_command,
    find_bwrap,
    package_versions,
    unsafe_driver_command,
)

UNSAFE_WARNING = (
    "WARNING: --unsafe-exec: programs that nobody has read run on this machine WITHOUT a sandbox; "
    "they can read every file you can read, and write many"
)
DRIVER_VERSION = 2
"""Raised whenever a program may give another result under a newer driver."""
_START_TIMEOUT_S = 30.0
_GRACE_S = 15.0  # beyond a program's own time-out: the driver's imports, a loaded machine
_MAX_STRETCH = 10
_MAX_PROGRAM_BYTES = 1 << 20
_MAX_RESPONSE_BYTES = 4 << 20
_SANDBOX_ENDED = "the program ended its sandbox"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramResult:
    """What one program did."""

    stdout: str
    """What it printed, up to 64 KiB; the rest is dropped."""
    error: str
    """The last line of its traceback, or what ended it; "" where it ended well."""
    timed_out: bool

    @property
    def is_repeatable(self) -> bool:
        """Whether the program ended by itself: time and signals are the machine's doing as well."""
        by_machine = ("killed by signal", _SANDBOX_ENDED)
        return not self.timed_out and not self.error.startswith(by_machine)


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxStatus:
    """Whether programs can be run here."""

    available: bool
    reason: str
    """One line: why not, and what to do; "" where they can."""


def sandbox_status() -> SandboxStatus:
    """Tries the sandbox: starts one driver and ends it (about 0.1 s)."""
    if platform.system() != "Linux":
        return SandboxStatus(available=False, reason="the sandbox needs Linux (bubblewrap)")
    if find_bwrap() is None:
        reason = "bwrap is not installed: apt-get install bubblewrap"
        return SandboxStatus(available=False, reason=reason)
    try:
        _Driver(unsafe=False).close()
    except _StartError as error:
        return SandboxStatus(available=False, reason=str(error))
    return SandboxStatus(available=True, reason="")


class Sandbox:
    """Runs batches of programs in `workers` sandboxes at a time.

    `timeout_s` is each program's wall-clock limit, `cpu_s` that of the CPU's time (two seconds more
    where it is None). Where `cpu_s` is the lower one, the clock ends only programs that wait: those
    that a busy machine holds up have ten times as long to use their CPU's time. `memory_mib` is its
    address space beyond that of the interpreter and of packages that it names, which are loaded
    before it starts. `unsafe` is the same drivers and limits without bubblewrap: for callers that
    print UNSAFE_WARNING and were told to by name. Raises DsmError where the sandbox is not
    available.

    A context manager. Not to be shared by processes; a process forked from another may make its
    own. The drivers die with the thread that ran the first program.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 10.0,
        cpu_s: int | None = None,
        memory_mib: int = 512,
        workers: int = 2,
        unsafe: bool = False,
    ) -> None:
        cpu_s = int(timeout_s) + 2 if cpu_s is None else cpu_s
        if timeout_s <= 0 or cpu_s < 1 or memory_mib < 64 or workers < 1:
            raise DsmError(
                "sandbox: timeout_s must be above 0, cpu_s and workers at least 1, memory_mib at "
                f"least 64 (found {timeout_s}, {cpu_s}, {workers}, {memory_mib})"
            )
        if not unsafe and not (status := sandbox_status()).available:
            raise DsmError(f"programs cannot be run: {status.reason}")
        self._unsafe = unsafe
        self._longest_s = timeout_s * (_MAX_STRETCH if cpu_s < timeout_s else 1)
        self._limits = {
            "timeout_s": timeout_s,
            "longest_s": self._longest_s,
            "cpu_s": cpu_s,
            "memory_mib": memory_mib,
        }
        self._drivers: list[_Driver | None] = [None] * workers
        self._last_number = 0
        self._lock = Lock()

    @property
    def conditions(self) -> str:
        """All that a result depends on besides the program, in one line."""
        versions = " ".join(f"{name} {version}" for name, version in package_versions().items())
        limits = ", ".join(f"{name} {value:g}" for name, value in self._limits.items())
        place = "no sandbox" if self._unsafe else "bubblewrap"
        return f"driver {DRIVER_VERSION}, {versions}; {limits}; {place}"

    def run(self, programs: Sequence[str]) -> list[ProgramResult]:
        """Runs the programs, each by itself, and returns their results in order."""
        with self._lock:
            try:
                return self._run(programs)
            except BaseException:
                self.close()  # or a driver would give this program's result for a later one
                raise

    def _run(self, programs: Sequence[str]) -> list[ProgramResult]:
        results: dict[int, ProgramResult] = {}
        waiting = list(range(len(programs)))[::-1]
        running: dict[int, int] = {}  # driver index: program index
        while len(results) < len(programs):
            for driver_idx in range(len(self._drivers)):
                if waiting and driver_idx not in running:
                    program_idx = waiting.pop()
                    rejected = self._start(driver_idx, programs[program_idx])
                    if rejected is None:
                        running[driver_idx] = program_idx
                    else:
                        results[program_idx] = rejected
            for driver_idx, result in self._wait(list(running)):
                results[running.pop(driver_idx)] = result
        return [results[idx] for idx in range(len(programs))]

    def close(self) -> None:
        """Ends the drivers and whatever runs in them."""
        for idx in range(len(self._drivers)):
            self._end(idx)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, driver_idx: int, program: str) -> ProgramResult | None:
        """Hands a program to a driver; returns its result where it is refused unrun."""
        if len(json.dumps(program)) > _MAX_PROGRAM_BYTES:
            error = f"the program is longer than {_MAX_PROGRAM_BYTES} bytes"
            return ProgramResult(stdout="", error=error, timed_out=False)
        self._last_number += 1
        request = {"number": self._last_number, "program": program, "limits": self._limits}
        body = json.dumps(request).encode()
        for _ in range(2):  # a driver may have died since; a fresh one takes the program
            try:
                driver = self._drivers[driver_idx] or _Driver(unsafe=self._unsafe)
            except _StartError as error:
                raise DsmError(f"programs cannot be run: {error}") from error
            self._drivers[driver_idx] = driver
            try:
                deadline = time.monotonic() + self._longest_s + _GRACE_S
                driver.send(self._last_number, body, deadline=deadline)
                return None
            except BrokenPipeError:
                self._end(driver_idx)
        raise DsmError("programs cannot be run: the sandbox ends as soon as it starts")

    def _wait(self, driver_indices: list[int]) -> list[tuple[int, ProgramResult]]:
        """Waits until at least one of the running programs has a result or none can come."""
        drivers = {idx: driver for idx in driver_indices if (driver := self._drivers[idx])}
        if not drivers:
            return []
        left = min(driver.deadline for driver in drivers.values()) - time.monotonic()
        indices = {driver.fileno(): idx for idx, driver in drivers.items()}
        finished: list[tuple[int, ProgramResult]] = []
        for fd in wait(list(indices), max(0.0, left)):
            assert isinstance(fd, int)
            idx = indices[fd]
            response = drivers[idx].receive()
            if response is None:
                continue
            if response.pop("last", True):
                self._end(idx)
            response.pop("number")
            finished.append((idx, ProgramResult(**response)))
        for idx, driver in drivers.items():
            if time.monotonic() > driver.deadline and idx not in dict(finished):
                self._end(idx)
                error = "TimeoutError: the program and its sandbox did not answer"
                finished.append((idx, ProgramResult(stdout="", error=error, timed_out=True)))
        return finished

    def _end(self, driver_idx: int) -> None:
        if (driver := self._drivers[driver_idx]) is not None:
            driver.close()
        self._drivers[driver_idx] = None


class _StartError(Exception):
    """The sandbox does not start; the message is one line with the way out."""


class _Driver:
    """One bubblewrap process, or a bare one, and the conversation with the driver in it."""

    def __init__(self, *, unsafe: bool) -> None:
        self._folder = tempfile.mkdtemp(prefix="dsm-programs-") if unsafe else None
        self._process = subprocess.Popen(
            driver_command() if self._folder is None else unsafe_driver_command(self._folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env=DRIVER_ENVIRONMENT,
        )
        self._received = bytearray()
        self._number = 0
        self.deadline = time.monotonic() + _START_TIMEOUT_S
        try:
            hello = self._first_message()
        except BaseException:
            self.close()
            raise
        if hello is None or hello["ready"] != "":
            problem = hello["ready"] if hello else self._last_words()
            self.close()
            raise _StartError(_why_not(problem, unsafe=unsafe))

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, number: int, body: bytes, *, deadline: float) -> None:
        """Sends one request of that number. Raises BrokenPipeError where the driver is gone."""
        assert self._process.stdin is not None
        self._number = number
        self.deadline = deadline
        data = memoryview(len(body).to_bytes(4, "big") + body)
        while data:
            data = data[os.write(self._process.stdin.fileno(), data) :]

    def receive(self) -> dict[str, Any] | None:
        """Reads what is there: the whole response to what was sent, or None: more is to come."""
        chunk = os.read(self.fileno(), 1 << 16)
        self._received += chunk
        if not chunk:
            return self._ended_message()
        while len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "big")
            if size > _MAX_RESPONSE_BYTES:
                return self._ended_message()
            if len(self._received) < 4 + size:
                return None
            message = json.loads(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            if message["number"] == self._number:
                return message
        return None

    def _ended_message(self) -> dict[str, Any]:
        return {
            "number": self._number,
            "stdout": "",
            "error": _SANDBOX_ENDED,
            "timed_out": False,
            "last": True,
        }

    def close(self) -> None:
        """Kills bubblewrap or the bare driver; the kernel kills all that it has started."""
        with suppress(ProcessLookupError):
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _first_message(self) -> dict[str, Any] | None:
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0 or not wait([self.fileno()], left):
                return None
            message = self.receive()
            if message is not None:
                return message if "ready" in message else None

    def _last_words(self) -> str:
        self._process.kill()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def _why_not(problem: str, *, unsafe: bool) -> str:
    if unsafe:
        return f"programs do not start as this user ({problem}): try another user"
    return (
        f"bwrap refuses to start ({problem}): allow unprivileged user namespaces here "
        "(in docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
    )
