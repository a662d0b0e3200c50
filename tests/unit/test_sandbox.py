"""The sandbox: what ordinary programs get back, and what happens where there is no bubblewrap."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsm_engine.errors import DsmError
from dsm_engine.sandbox import Sandbox, sandbox_status
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
def test_programs_share_nothing(sandbox: Sandbox) -> None:
    leave = "import math, os; math.pi = 3; open('/tmp/left', 'w').close(); os.chdir('/')"
    look = "import math, os; print(math.pi > 3.1, os.listdir('/tmp'), os.getcwd())"
    results = sandbox.run([leave, look] * 4)
    assert {result.stdout for result in results[1::2]} <= {"True [] /tmp\n", "True ['left'] /tmp\n"}
    with Sandbox(workers=1) as single:
        assert single.run([leave, look])[1].stdout == "True [] /tmp\n"


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


@pytest.mark.parametrize("arguments", [{"timeout_s": 0}, {"memory_mib": 1}, {"workers": 0}])
def test_impossible_limits_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(DsmError, match="must be above 0"):
        Sandbox(**arguments)


def test_the_filter_fits_the_kernel_and_unknown_machines_are_refused() -> None:
    for machine in ("x86_64", "aarch64"):
        code = _filter(machine, 7)
        assert len(code) % 8 == 0 and len(code) // 8 < 4096
    with pytest.raises(OSError, match="riscv64"):
        _filter("riscv64", 7)
