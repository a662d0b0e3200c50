"""The sandbox: what ordinary programs get back, and what happens where there is no bubblewrap."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsm_engine.errors import DsmError
from dsm_engine.sandbox import ProgramResult, Sandbox, sandbox_status
from dsm_engine.sandbox.commands import _package_folders
from dsm_engine.sandbox.seccomp_filter import _filter

STATUS = sandbox_status()
needs_bwrap = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=2) as opened:
        yield opened


@needs_bwrap
def test_results_come_back_in_order(sandbox: Sandbox) -> None:
    results = sandbox.run([f"print({number} * 2)" for number in range(50)])
    assert [result.stdout for result in results] == [f"{2 * number}\n" for number in range(50)]
    assert not any(result.error or result.timed_out for result in results)
    assert sandbox.run([]) == []


@needs_bwrap
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(undefined)", "NameError: name 'undefined' is not defined"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('first\\nlast')", "last"),
        ("exit(3)", "SystemExit: 3"),
        ("import os; os._exit(4)", "exited with status 4"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal SIGSEGV"),
        ("\0", "ValueError: source code string cannot contain null bytes"),
        ("x" * (2 << 20), "the program is longer than 1048576 bytes"),
    ],
)
def test_an_error_is_the_last_line_of_the_traceback(
    sandbox: Sandbox, program: str, error: str
) -> None:
    (result,) = sandbox.run([program])
    if "null bytes" in error:  # the wording differs between Python versions
        assert "null bytes" in result.error
    else:
        assert result.error == error
    assert not result.timed_out


@needs_bwrap
def test_what_was_printed_before_an_error_is_kept(sandbox: Sandbox) -> None:
    (result,) = sandbox.run(["print('答案')\n1 / 0"])
    assert (result.stdout, result.error) == ("答案\n", "ZeroDivisionError: division by zero")


@needs_bwrap
def test_leaving_early_without_a_fault_is_no_error(sandbox: Sandbox) -> None:
    results = sandbox.run(["print(1); exit()", "print(1); quit(0)", "import sys; sys.exit()", ""])
    assert [result.error for result in results] == [""] * 4


@needs_bwrap
def test_a_program_past_its_time_is_stopped_and_the_next_runs(sandbox: Sandbox) -> None:
    slow, fast = sandbox.run(["import time\ntime.sleep(60)", "print(1)"])
    assert slow.timed_out and slow.error == "TimeoutError: the program ran longer than 2 s"
    assert fast.stdout == "1\n" and not fast.timed_out


@needs_bwrap
def test_a_program_past_its_cpu_time_is_stopped_however_much_clock_is_left() -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    with Sandbox(timeout_s=60, cpu_s=1, workers=1) as sandbox:
        endless, stubborn, idle = sandbox.run(
            ["while True: pass", ignoring, "import time; time.sleep(1.5); print(1)"]
        )
    for stopped in (endless, stubborn):
        assert stopped.timed_out
        assert stopped.error == "TimeoutError: the program used more than 1 s of the CPU"
    assert idle.stdout == "1\n" and not idle.timed_out


@needs_bwrap
def test_a_busy_machine_ends_only_programs_that_wait() -> None:
    computing = "import time\nwhile time.process_time() < 0.5: pass\nprint(1)"
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # inherited: four processes share one core
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(3)]
    try:
        with Sandbox(timeout_s=1.1, cpu_s=1, workers=1) as sandbox:
            held_up, waiting, polling = sandbox.run(
                [
                    computing,
                    "import time; time.sleep(60)",
                    "import time\nwhile True: time.sleep(0.1)",
                ]
            )
    finally:
        os.sched_setaffinity(0, cpus)
        for process in busy:
            process.kill()
            process.wait()
    assert held_up == ProgramResult(stdout="1\n", error="", timed_out=False)
    assert waiting.error == polling.error == "TimeoutError: the program ran longer than 1.1 s"


@needs_bwrap
def test_programs_share_nothing(sandbox: Sandbox) -> None:
    leave = "import math, os; math.pi = 3; open('/tmp/left', 'w').close(); os.chdir('/')"
    look = "import math, os; print(math.pi > 3.1, os.listdir('/tmp'), os.getcwd())"
    results = sandbox.run([leave, look] * 4)
    assert {result.stdout for result in results[1::2]} <= {"True [] /tmp\n", "True ['left'] /tmp\n"}
    with Sandbox(workers=1) as single:
        assert single.run([leave, look])[1].stdout == "True [] /tmp\n"


MEMORY_MIB = 256
NEARLY_ALL = f"x = bytearray({MEMORY_MIB - 8} << 20)\nprint(1)"
TOO_MUCH = f"x = bytearray({MEMORY_MIB + 8} << 20)"


@needs_bwrap
@pytest.mark.parametrize("package", ["math", "numpy", "sympy"])
def test_a_program_has_the_same_memory_whatever_ran_before(package: str) -> None:
    pytest.importorskip(package)
    with Sandbox(memory_mib=MEMORY_MIB, workers=1) as sandbox:
        before, most, more = sandbox.run([f"import {package}", NEARLY_ALL, TOO_MUCH])
    assert before.error == ""
    assert most == ProgramResult(stdout="1\n", error="", timed_out=False)
    assert more.error == "MemoryError"


@needs_bwrap
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.chmod('/tmp', 0o500); print(1)",
        "import os; os.chmod('/tmp', 0); print(1)",
        "import os; os.makedirs('/tmp/a/b'); os.chmod('/tmp/a', 0); print(1)",
        "import os\ntry: os.setxattr('/tmp', 'user.left', b'2')\nexcept OSError: pass\nprint(1)",
    ],
)
def test_what_a_program_does_to_its_folder_reaches_nobody_else(program: str) -> None:
    look = (
        "import os\nprint(os.listdir(), os.listxattr('/tmp'))\nopen('f', 'w').write('x')\n"
        "print(oct(os.stat('/tmp').st_mode))"
    )
    with Sandbox(workers=1) as sandbox:
        before, changed, after = sandbox.run([look, program, look])
    assert changed == ProgramResult(stdout="1\n", error="", timed_out=False)
    assert after == before and before.error == "" and before.stdout.startswith("[] []\n")


@needs_bwrap
def test_set_order_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    program = "print({'a', 'b', 'c', 'd', 'e'})"
    assert len({result.stdout for result in sandbox.run([program] * 6)}) == 1


@needs_bwrap
def test_sympy_and_numpy_can_be_imported(sandbox: Sandbox) -> None:
    pytest.importorskip("sympy")
    solve = "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 4, x))"
    results = sandbox.run([solve, "import numpy as np\nprint(np.arange(4).sum())"])
    assert [result.stdout for result in results] == ["[-2, 2]\n", "6\n"]


@needs_bwrap
def test_a_closed_sandbox_starts_again_when_used(sandbox: Sandbox) -> None:
    with Sandbox() as other:
        assert other.run(["print(1)"])[0].stdout == "1\n"
        other.close()
        assert other.run(["print(2)"])[0].stdout == "2\n"


class Interruption(Exception):
    """Raised by a signal's handler, wherever the program is."""


@needs_bwrap
def test_after_an_interruption_results_are_those_of_the_programs_asked_for() -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    with Sandbox(timeout_s=10, workers=2) as sandbox:
        sandbox.run(["print('start')"] * 2)
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interruption):
                sandbox.run(["import time; time.sleep(0.5); print('interrupted')"] * 2)
        finally:
            signal.signal(signal.SIGALRM, previous)
        time.sleep(0.5)
        results = sandbox.run([f"print({number})" for number in range(4)])
    assert [result.stdout for result in results] == ["0\n", "1\n", "2\n", "3\n"]


@needs_bwrap
def test_after_a_driver_that_does_not_start_results_are_those_of_the_programs_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Sandbox(timeout_s=10, workers=2) as sandbox:
        sandbox.run(["print('start')"])
        with monkeypatch.context() as patch:
            fake = tmp_path / "bwrap"
            fake.write_text("#!/bin/sh\nexit 1\n")
            fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
            patch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
            with pytest.raises(DsmError, match="cannot be run"):
                sandbox.run(["print('left')"] * 2)
        assert [result.stdout for result in sandbox.run(["print(1)", "print(2)"])] == ["1\n", "2\n"]


@pytest.fixture(scope="module")
def unsafe() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=2, memory_mib=256, workers=1, unsafe=True) as opened:
        yield opened


def test_unsafe_needs_no_bubblewrap_and_keeps_the_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sandbox(timeout_s=2, memory_mib=256, workers=2, unsafe=True) as sandbox:
        programs = ["print(6 * 7)", "while True: pass", "x = 'a' * 10**9", "while True: print(1)"]
        right, endless, huge, wordy = sandbox.run(programs)
    assert right == ProgramResult(stdout="42\n", error="", timed_out=False)
    assert endless.timed_out and huge.error == "MemoryError"
    assert wordy.timed_out and len(wordy.stdout) <= 64 * 1024


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nos.kill(os.getppid(), 9)",
        "import socket\nsocket.socket()",
        "import subprocess\nsubprocess.run(['/usr/bin/id'])",
        "import os\nos.setuid(0)" if os.getuid() == 0 else "import os\nos.chroot('/tmp')",
    ],
)
def test_unsafe_still_refuses_what_the_filter_refuses(unsafe: Sandbox, program: str) -> None:
    assert "PermissionError" in unsafe.run([program])[0].error


def test_unsafe_programs_see_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret-4711")
    with Sandbox(timeout_s=2, workers=1, unsafe=True) as sandbox:
        assert "secret-4711" not in sandbox.run(["import os\nprint(os.environ)"])[0].stdout


def test_unsafe_programs_work_in_a_folder_of_their_own_that_goes(unsafe: Sandbox) -> None:
    code = "import os; print(os.getcwd(), os.listdir()); open('left', 'w').close()"
    with Sandbox(timeout_s=2, workers=1, unsafe=True) as sandbox:
        first, second = sandbox.run([code, code])
        folder, _, listing = first.stdout.strip().partition(" ")
        assert second.stdout == first.stdout and listing == "[]"
        assert Path(folder).is_dir() and Path(folder).name.startswith("dsm-programs-")
    assert not Path(folder).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root has privileges to drop")
def test_unsafe_programs_of_root_run_as_nobody(unsafe: Sandbox) -> None:
    code = "import os; print(os.getresuid(), os.getresgid(), os.getgroups()); open('/usr/x', 'w')"
    (result,) = unsafe.run([code])
    assert result.stdout == "(65534, 65534, 65534) (65534, 65534, 65534) []\n"
    assert result.error.startswith("PermissionError")


def test_only_installed_packages_are_mounted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("numpy", "scipy", "sympy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    before = _package_folders()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert _package_folders() == before
    assert {folder.name for folder in before} <= {"site-packages", "dist-packages"}


def test_results_under_other_conditions_are_told_apart() -> None:
    sandboxes = [Sandbox(unsafe=True), Sandbox(unsafe=True, timeout_s=1)]
    if STATUS.available:
        sandboxes.append(Sandbox())
    conditions = [sandbox.conditions for sandbox in sandboxes]
    assert len(set(conditions)) == len(conditions)
    assert "python 3." in conditions[0] and "numpy" in conditions[0]


def _run_in_worker(unsafe: bool) -> str:
    with Sandbox(workers=1, unsafe=unsafe) as sandbox:
        return sandbox.run(["print(6 * 7)"])[0].stdout


MODES = [pytest.param(False, marks=needs_bwrap, id="bubblewrap"), pytest.param(True, id="unsafe")]


@pytest.mark.parametrize("without_bwrap", MODES)
def test_forked_workers_have_sandboxes_of_their_own(without_bwrap: bool) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_run_in_worker, [without_bwrap] * 4) == ["42\n"] * 4


@pytest.mark.parametrize("without_bwrap", MODES)
def test_a_killed_worker_leaves_no_process_behind(without_bwrap: bool) -> None:
    script = (
        "import os, threading, time\n"
        "from dsm_engine.sandbox import Sandbox\n"
        "def tell():\n"
        "    time.sleep(1.5)\n"
        "    print(flush=True)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    print(os.getpid(), flush=True)\n"
        "    threading.Thread(target=tell, daemon=True).start()\n"
        f"    Sandbox(timeout_s=60, workers=2, unsafe={without_bwrap}).run(\n"
        "        ['while True: pass', 'import time; time.sleep(60)'])\n"
        "os.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.stdout.readline()  # both programs run
    family = _descendants(worker)
    assert len(family) >= 4  # two drivers and their programs at least
    os.kill(worker, 9)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in family if _is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat_text = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat_text.rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found[1:]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_without_bubblewrap_nothing_runs_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox_status().reason == "bwrap is not installed: apt-get install bubblewrap"
    with pytest.raises(DsmError, match="apt-get install bubblewrap"):
        Sandbox()


def test_where_bubblewrap_refuses_its_own_words_are_in_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    status = sandbox_status()
    assert not status.available and "\n" not in status.reason
    assert "No permissions to create new namespace" in status.reason
    with pytest.raises(DsmError, match="user namespaces"):
        Sandbox()


@pytest.mark.parametrize(
    "arguments", [{"timeout_s": 0}, {"memory_mib": 1}, {"workers": 0}, {"cpu_s": 0}]
)
def test_impossible_limits_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(DsmError, match="must be above 0"):
        Sandbox(**arguments)


def test_the_filter_fits_the_kernel_and_unknown_machines_are_refused() -> None:
    for machine in ("x86_64", "aarch64"):
        code = _filter(machine, 7)
        assert len(code) % 8 == 0 and len(code) // 8 < 4096
    with pytest.raises(OSError, match="riscv64"):
        _filter("riscv64", 7)
