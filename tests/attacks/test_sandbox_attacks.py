"""Programs that try to get out, to reach others or to exhaust the machine: none succeeds."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsm_engine.sandbox import ProgramResult, Sandbox, sandbox_status

STATUS = sandbox_status()
pytestmark = pytest.mark.skipif(not STATUS.available, reason=STATUS.reason)

PATIENT_S = 20.0
IMPATIENT_S = 2.0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """For attacks that another limit than the clock must end, however slow the machine is."""
    with Sandbox(timeout_s=PATIENT_S, memory_mib=256, workers=1) as opened:
        opened.run(["pass"])
        yield opened


@pytest.fixture(scope="module")
def impatient() -> Iterator[Sandbox]:
    """For attacks that only the time-out ends."""
    with Sandbox(timeout_s=IMPATIENT_S, workers=1) as opened:
        opened.run(["pass"])
        yield opened


def attack(sandbox: Sandbox, program: str, *, timeout_s: float = PATIENT_S) -> ProgramResult:
    """Runs the program; it must end in time, and its neighbour must work as ever."""
    start = time.monotonic()
    result, neighbour = sandbox.run([program, "print(6 * 7)"])
    assert time.monotonic() - start < timeout_s + 3
    assert neighbour == ProgramResult(stdout="42\n", error="", timed_out=False)
    return result


def stopped(impatient: Sandbox, program: str) -> ProgramResult:
    """As `attack`, for one that would go on for ever."""
    return attack(impatient, program, timeout_s=IMPATIENT_S)


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nwhile True:\n    os.fork()",
        "import os\nif os.forkpty()[0] == 0: os.setsid()",
        "import subprocess\nsubprocess.run(['/usr/bin/id'])",
        "import os\nos.posix_spawn('/usr/bin/id', ['id'], {})",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.execv('/usr/bin/id', ['id'])",
        "import os\nos.kill(1, 9)",
        "import os\nos.kill(os.getppid(), 19)",
        "import os\nos.kill(-1, 9)",
        "import os\nos.killpg(0, 15)",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(1), 9)",
        "import os\nos.sched_setaffinity(1, [0])",
        "import os\nos.setpriority(os.PRIO_PROCESS, 1, 19)",
        "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
        "import os\nos.memfd_create('x')",
        "import os\nos.chroot('/tmp')",
        "import os\nos.setuid(0)",
        "import socket\nsocket.socket()",
        "import socket\nsocket.socketpair()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:80')",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_a_forbidden_call_is_an_error(sandbox: Sandbox, program: str) -> None:
    result = attack(sandbox, program)
    assert result.error and result.stdout == "" and not result.timed_out


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/shadow",
        __file__,  # surely there on the host, whoever runs this
        "/home",
        "/proc/1/mem",
        "/proc/self/environ",
        "/sys/kernel",
        "/var/log",
        "/run",
        "/boot",
        "/dev/sda",
        "/dev/mem",
        "/dev/kmsg",
    ],
)
def test_the_host_cannot_be_read(sandbox: Sandbox, path: str) -> None:
    result = attack(sandbox, f"import os\nprint(os.lstat({path!r}))")
    assert result.stdout == "" and result.error.startswith("FileNotFoundError")


@pytest.mark.parametrize("folder", ["/", "/usr", "/usr/bin", "/dev", "/dev/shm", "/dsm", "/etc"])
def test_nothing_outside_tmp_can_be_written(sandbox: Sandbox, folder: str) -> None:
    result = attack(sandbox, f"open({folder!r} + '/x', 'w')")
    assert "Read-only file system" in result.error or "PermissionError" in result.error


def test_a_file_of_the_user_is_neither_seen_nor_changed(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("unchanged")
    assert attack(sandbox, f"print(open({str(secret)!r}).read())").stdout == ""
    attack(sandbox, f"open({str(secret)!r}, 'w').write('changed')")
    assert secret.read_text() == "unchanged"


def test_the_environment_holds_nothing_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret-4711")
    with Sandbox(timeout_s=PATIENT_S) as sandbox:
        result = attack(sandbox, "import os\nprint(os.environ)")
    assert "PYTHONUTF8" in result.stdout and "secret-4711" not in result.stdout


def test_ten_gigabytes_are_refused(sandbox: Sandbox) -> None:
    assert attack(sandbox, "x = 'a' * 10**10").error == "MemoryError"
    assert (
        attack(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))").error == "MemoryError"
    )
    mapped = "import mmap\nmmap.mmap(-1, 10 << 30)"
    assert "Cannot allocate memory" in attack(sandbox, mapped).error


def test_endless_output_is_cut_and_stopped(impatient: Sandbox) -> None:
    result = stopped(impatient, "while True: print('x' * 1000)")
    assert result.timed_out and 0 < len(result.stdout) <= 64 * 1024


def test_endless_loops_and_sleeps_are_stopped(impatient: Sandbox) -> None:
    assert stopped(impatient, "while True: pass").timed_out
    stubborn = "import signal, time\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\n"
    assert stopped(impatient, stubborn + "while True:\n  time.sleep(1)").timed_out
    # Closing every descriptor hides the program's end from a reader of its pipes.
    assert stopped(impatient, "import os, time\nos.closerange(0, 64)\ntime.sleep(60)").timed_out


def test_a_number_too_large_to_compute_is_stopped(impatient: Sandbox) -> None:
    result = stopped(impatient, "print(9**9**9**9)")
    assert result.timed_out or result.error


def test_threads_end_with_their_program(impatient: Sandbox) -> None:
    bomb = (
        "import threading, time\nwhile True:\n"
        "  threading.Thread(target=time.sleep, args=(99,)).start()"
    )
    result = stopped(impatient, bomb)
    assert result.timed_out or result.error


def test_disk_is_bounded_and_emptied(sandbox: Sandbox) -> None:
    fill = "n = 0\nwhile True:\n  open(f'/tmp/{n}', 'wb').write(bytes(4 << 20)); n += 1"
    assert "No space left" in attack(sandbox, fill).error
    assert "File too large" in attack(sandbox, "open('/tmp/x', 'wb').write(bytes(64 << 20))").error
    many = "for n in range(2000): open(f'/tmp/{n}', 'w').close()"
    assert attack(sandbox, many).error == ""
    assert attack(sandbox, "import os\nprint(os.listdir('/tmp'))").stdout == "[]\n"


def test_a_folder_that_cannot_be_entered_does_not_stay(sandbox: Sandbox) -> None:
    attack(sandbox, "import os\nos.makedirs('/tmp/a/b/c')\nos.chmod('/tmp/a', 0)")
    attack(sandbox, "import os\nos.mkdir('/tmp/z')\nos.chmod('/tmp', 0o500)")
    assert attack(sandbox, "import os\nprint(os.listdir('/tmp'))").stdout == "[]\n"


def test_the_answer_pipe_cannot_be_written(sandbox: Sandbox) -> None:
    forge = (
        "import os, json\nbody = json.dumps(dict(stdout='forged', error='', timed_out=False,"
        " last=False)).encode()\nfor fd in range(3, 64):\n"
        "  try: os.write(fd, len(body).to_bytes(4, 'big') + body)\n  except OSError: pass\n"
    )
    assert "forged" not in attack(sandbox, forge).stdout


def test_huge_and_hostile_errors_are_bounded(sandbox: Sandbox, impatient: Sandbox) -> None:
    assert len(attack(sandbox, "raise ValueError('x' * 10**7)").error) <= 4096
    hostile = "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E"
    assert stopped(impatient, hostile).timed_out
    assert attack(sandbox, "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()").error


def test_the_host_interface_survives_patched_builtins(sandbox: Sandbox) -> None:
    patch = (
        "import builtins, os, sys\nsys.stdout = None\nbuiltins.len = None\nos.write = None\n1 / 0"
    )
    assert attack(sandbox, patch).error


def test_a_closed_sandbox_leaves_no_process() -> None:
    before = _children()
    with Sandbox(timeout_s=30, workers=2) as sandbox:
        sandbox.run(["pass", "pass"])
        mine = _children() - before
        assert len(mine) == 2
    assert not _children() & mine


def test_a_sandbox_dies_with_its_process() -> None:
    program = (
        "import os\nfrom dsm_engine.sandbox import Sandbox\n"
        "s = Sandbox(timeout_s=60, workers=1)\ns.run(['pass'])\n"
        "print(s._drivers[0]._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -9
    deadline = time.monotonic() + 5
    while (alive := _is_alive(int(ended.stdout))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children() -> set[str]:
    """The running children of this process."""
    children: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            children.add(folder.name)
    return children
