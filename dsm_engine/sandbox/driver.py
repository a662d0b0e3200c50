"""The driver inside the sandbox: reads programs, forks one process for each, answers.

Runs as process 1 of its namespace, so that no program can signal it, by a bare interpreter with
the standard library only. Its arguments: `bubblewrap` or `unsafe`, the folder in which programs
run, and the folders of packages that they may import. `unsafe` is the same without namespaces:
the driver dies with its parent, and programs of root run as nobody.
A message is a length (4 bytes, big endian) and JSON. Requests: number, program and its
limits. Responses: the number, stdout, error, timed_out, and last (the driver gives up; start
another). The first message, number 0, says whether the driver is ready.
"""

import ctypes
import gc
import json
import mmap
import os
import resource
import select
import shutil
import signal
import site
import struct
import sys
import time
import traceback
import types
from typing import TypedDict

import seccomp_filter

MAX_STDOUT_BYTES = 64 * 1024
_MAX_ERROR_BYTES = 4096
_MAX_FILE_BYTES = 8 << 20
_MAX_OPEN_FILES = 64
_MAX_PROCESSES = 64
_MAX_ADDRESS_SPACE = 64 << 30
_WINDOW_S = 1.0
_COMPUTING = 0.02  # share of a window on the CPU; waiting and polling need less
_MAX_LEFTOVERS = 100  # entries in its folder that are worth deleting one by one
_ERROR_FD = 3
_NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS = 1, 8
_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_READ_SEARCH = 2
# Run here, once, when a program names the package: every later fork has for nothing what it
# imports, and sympy's own imports and caches at first use (0.2 s a program otherwise).
_SYMPY_FIRST_USE = """
from sympy import *
x, y = symbols("x y")
solve((Eq(2 * x + 3 * y, 5), Eq(x - y, 1)), (x, y)), solve([2.5 * x + y - 5, x - y], [x, y])
solve(x**2 - 2, x), solve(Eq(x / 2 + 1, 0.5), x), simplify((x + 1) / x + sin(x)**2), N(pi)
str((factor(x**2 - 1), expand((x + y)**3), diff(x**3, x), integrate(x**2, x), Rational(1, 3)))
"""
# Keys are what a program names; packages that it loads by way of others are those of any driver.
_PRELOADED = {
    "numpy": "import numpy",
    "scipy": "import numpy",
    "mpmath": "import mpmath",
    "sympy": _SYMPY_FIRST_USE,
}


class Limits(TypedDict):
    """What a program may use: seconds of the clock, of the CPU, memory beyond the driver's."""

    timeout_s: float
    longest_s: float
    """Seconds of the clock for a program that is still computing: the machine is busy."""
    cpu_s: int
    memory_mib: int


def main() -> None:
    requests, responses = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    mode, folder, *packages = sys.argv[1:]
    unsafe = mode == "unsafe"
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(__file__)]  # noqa: PTH120
    sys.path += packages
    site.setquit()
    if unsafe:
        _die_with_parent()
        if os.getuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
    folder_mode = os.stat(folder).st_mode  # noqa: PTH116
    preloaded: set[str] = set()
    _write_message(responses, {"number": 0, "ready": _check_child(folder, unsafe=unsafe)})
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    while (request := _read_message(requests)) is not None:
        _preload(request["program"], preloaded)
        response = _run(request["program"], request["limits"], folder=folder, unsafe=unsafe)
        response["number"] = request["number"]
        response["last"] = not _clean(folder, folder_mode)
        _write_message(responses, response)
        if response["last"]:
            return


def _run(program: str, limits: Limits, *, folder: str, unsafe: bool) -> dict:
    stdout_read, stdout_write = os.pipe()
    error_read, error_write = os.pipe()
    child = os.fork()
    if child == 0:
        fds = (stdout_write, error_write)
        _run_child(program, limits, fds, folder=folder, unsafe=unsafe)
    os.close(stdout_write)
    os.close(error_write)
    stdout, error = bytearray(), bytearray()
    deadline = _Deadline(child, limits)
    in_time = _capture({stdout_read: stdout, error_read: error}, deadline)
    ended = _wait(child, deadline) if in_time else None
    if ended is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(stdout_read)
    os.close(error_read)
    message = error.decode(errors="replace").strip()
    timed_out = ended is None
    if ended is None:
        message = f"TimeoutError: the program ran longer than {limits['timeout_s']:g} s"
    elif _hit_cpu_limit(*ended, limits["cpu_s"]):
        timed_out = True
        message = f"TimeoutError: the program used more than {limits['cpu_s']} s of the CPU"
    elif not message:
        message = _describe_status(ended[0])
    return {"stdout": stdout.decode(errors="replace"), "error": message, "timed_out": timed_out}


class _Deadline:
    """When a program's time is over: at its limit of the clock, or, while it computes, later."""

    def __init__(self, child: int, limits: Limits) -> None:
        self._child = child
        self._window_s = min(_WINDOW_S, limits["timeout_s"] / 2)
        started = time.monotonic()
        self._last = started + limits["longest_s"]
        self._next_look = started + limits["timeout_s"] - self._window_s
        self._looks = 0
        self._used_s = 0.0

    def left(self) -> float:
        """For how many seconds to wait before asking again; 0 where the time is over."""
        now = time.monotonic()
        if now < self._next_look:
            return self._next_look - now
        used_s = _cpu_seconds(self._child, self._used_s)
        computing = used_s - self._used_s >= _COMPUTING * self._window_s
        self._used_s = used_s
        self._looks += 1
        if self._looks > 1 and not (computing and now < self._last):
            return 0.0
        self._next_look = now + self._window_s
        return self._window_s


def _cpu_seconds(child: int, otherwise: float) -> float:
    """The CPU's time a process has used, by the clock that Linux has for each process."""
    try:
        return time.clock_gettime((~child << 3) | 2)
    except OSError:
        return otherwise


def _capture(buffers: dict[int, bytearray], deadline: _Deadline) -> bool:
    """Reads until every pipe is at its end, dropping what exceeds the limits; False: time is up."""
    limits = dict(zip(buffers, (MAX_STDOUT_BYTES, _MAX_ERROR_BYTES), strict=True))
    unfinished = list(buffers)
    while unfinished:
        left_s = deadline.left()
        if left_s <= 0:
            return False
        for fd in select.select(unfinished, [], [], left_s)[0]:
            chunk = os.read(fd, 1 << 16)
            if chunk:
                buffers[fd] += chunk[: limits[fd] - len(buffers[fd])]
            else:
                unfinished.remove(fd)
    return True


def _wait(child: int, deadline: _Deadline) -> tuple[int, float] | None:
    """The child's wait status and CPU seconds, None where it still runs at the deadline."""
    pause_s = 0.0001
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage.ru_utime + usage.ru_stime
        if deadline.left() <= 0:
            return None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)


def _hit_cpu_limit(status: int, used_s: float, cpu_s: int) -> bool:
    """Whether the kernel ended it for its CPU time: at the limit, or, ignored, a second later."""
    if not os.WIFSIGNALED(status):
        return False
    number = os.WTERMSIG(status)
    # The kernel's counter of the limit and that of the usage differ by some ticks.
    return number == signal.SIGXCPU or (number == signal.SIGKILL and used_s > 0.8 * cpu_s)


def _describe_status(status: int) -> str:
    """What ended a program that raised nothing; "" where it ended well."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""


def _run_child(
    program: str, limits: Limits, fds: tuple[int, int], *, folder: str, unsafe: bool
) -> None:
    """Becomes the program; never returns. `fds` are those of its output and of its error."""
    status = 1
    try:
        os.dup2(fds[0], 1)
        os.dup2(fds[1], _ERROR_FD)
        os.closerange(_ERROR_FD + 1, 256)
        os.setsid()
        os.chdir(folder)
        _set_limits(limits)
        _confine(unsafe=unsafe)
    except BaseException:  # noqa: BLE001 - no verdict on the program, which has not started
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        status = _execute(program)
    finally:
        os._exit(status)


def _confine(*, unsafe: bool) -> None:
    """No privileges and few system calls from here on."""
    if unsafe:
        if os.getuid() == 0:
            _become_nobody()
        _die_with_parent()  # after the change of user, which takes it back
    seccomp_filter.install(os.getpid())


def _become_nobody() -> None:
    """Gives up root but, where it can be kept, the right to read: Python may lie in /root."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for kept in (1 << _CAP_DAC_READ_SEARCH, 0):
        header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
        # Effective, permitted, inheritable; then the same for capabilities from 32 on.
        if libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0:
            return
    raise OSError("capset: root's capabilities cannot be given up")


def _die_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _set_limits(limits: Limits) -> None:
    mapped = _mapped_bytes()  # packages that were loaded for another program cost this one nothing
    for name, limit in (
        (resource.RLIMIT_AS, mapped + (limits["memory_mib"] << 20)),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(name, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def _mapped_bytes() -> int:
    """The address space of this process; there is no /proc to read it from.

    It is what is missing where the largest mapping that fits is put beside it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, hard))
    fits, too_large = 0, _MAX_ADDRESS_SPACE // mmap.PAGESIZE + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    while too_large - fits > 1:
        pages = (fits + too_large) // 2
        try:
            mmap.mmap(-1, pages * mmap.PAGESIZE, flags=flags, prot=0).close()
            fits = pages
        except OSError:
            too_large = pages
    if fits == 0:
        raise MemoryError("nothing can be mapped")
    return _MAX_ADDRESS_SPACE - fits * mmap.PAGESIZE


def _execute(program: str) -> int:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    status, error = 0, ""
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        _join_threads()
    except SystemExit as exit_request:
        if exit_request.code not in (None, 0):
            status, error = 1, f"SystemExit: {exit_request.code}"
    except BaseException as exception:  # noqa: BLE001 - whatever a program raises is its result
        status = 1
        lines = "".join(traceback.format_exception_only(exception)).strip().splitlines()
        error = lines[-1] if lines else type(exception).__name__
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        status = 1
    if error:
        os.write(_ERROR_FD, error.encode(errors="replace")[:_MAX_ERROR_BYTES])
    return status


def _join_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is not None:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()


def _check_child(folder: str, *, unsafe: bool) -> str:
    """Becomes what programs become, in a process of its own; "" where that works."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _confine(unsafe=unsafe)
            for path in (folder, *filter(os.path.isdir, sys.path)):
                os.listdir(path)  # noqa: PTH208
            import socket  # noqa: F401 - nothing has loaded it: can modules be loaded at all?
        except (OSError, ImportError) as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    problem = os.read(read, _MAX_ERROR_BYTES).decode(errors="replace")
    os.close(read)
    _, status = os.waitpid(child, 0)
    return problem or ("" if status == 0 else f"the filter's test ended with status {status}")


def _preload(program: str, preloaded: set[str]) -> None:
    for name, first_use in _PRELOADED.items():
        if name in program and name not in preloaded:
            preloaded.add(name)
            try:
                exec(first_use, {})
            except ImportError:
                sys.modules.pop(name, None)  # the program will see the error itself
            gc.collect()
            gc.freeze()


def _clean(folder: str, mode: int) -> bool:
    """Makes the folder what it was before a program; False where another driver must."""
    try:
        return (
            os.stat(folder).st_mode == mode  # noqa: PTH116
            and not os.listxattr(folder)
            and _empty(folder)
        )
    except OSError:
        return False


def _empty(folder: str) -> bool:
    """Whether the folder is empty in the end; False where that would take long."""
    entries = os.listdir(folder)  # noqa: PTH208
    if len(entries) > _MAX_LEFTOVERS:
        return False
    for entry in entries:
        path = f"{folder}/{entry}"
        # A folder may be deep or full: a new sandbox is the faster broom.
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            if len(os.listdir(path)):  # noqa: PTH208
                return False
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)  # noqa: PTH108
    return not os.listdir(folder)  # noqa: PTH208


def _read_message(fd: int) -> dict | None:
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, int.from_bytes(header, "big"))
    return None if body is None else json.loads(body)


def _read_exactly(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _write_message(fd: int, message: dict) -> None:
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
