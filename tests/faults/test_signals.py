"""SIGTERM and SIGUSR1, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from dsm_engine.training.faults.exits import STOP_TOO_SLOW
from dsm_engine.training.faults.stop import SIGNALS, StopRequest

_PROGRAM = """
import os, signal, sys, time
from dsm_engine.training.faults import stop as module
module.SAME_REQUEST_S = 0.3
def until_asked(stop):
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
with module.StopRequest() as stop:
    {body}
print("left", flush=True)
"""


def _start(body: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(process, "ready")
    return process


def _wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == word + "\n"


def _ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request_and_no_end(number: signal.Signals) -> None:
    process = _start("until_asked(stop)")
    process.send_signal(number)
    code, output, errors = _ends(process)
    assert (code, output) == (0, "asked\nleft\n")
    assert f"{number.name}: finishing the step" in errors


def test_signals_close_together_are_one_request() -> None:
    process = _start("until_asked(stop); time.sleep(1)")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    assert _ends(process)[:2] == (0, "asked\nleft\n")


def test_a_second_signal_ends_at_once_while_native_code_blocks() -> None:
    # A read of a pipe that nobody writes to holds the main thread like a collective does.
    process = _start("until_asked(stop); r, w = os.pipe(); os.read(r, 1)")
    process.send_signal(signal.SIGTERM)
    _wait_for(process, "asked")
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert _ends(process)[0] == 128 + signal.SIGTERM
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("order", ["limit first", "request first"])
def test_a_stop_that_takes_too_long_ends_with_its_own_code(order: str) -> None:
    blocked = "r, w = os.pipe(); os.read(r, 1)"
    body = f"stop.limit(0.3); until_asked(stop); {blocked}"
    if order == "request first":
        body = f"until_asked(stop); stop.limit(0.3); {blocked}"
    process = _start(body)
    process.send_signal(signal.SIGUSR1)
    code, _, errors = _ends(process)
    assert code == STOP_TOO_SLOW
    assert "did not stop within faults.stop_within_s=0.3" in errors


def test_a_forked_process_ends_its_work_whatever_the_signals() -> None:
    body = (
        "pid = os.fork(); pid or (time.sleep(0.6), os._exit(7)); time.sleep(0.2); "
        "os.kill(pid, signal.SIGTERM); os.kill(pid, signal.SIGUSR1); "
        "print('ready', flush=True); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "
        "stop.requested)"
    )
    code, output, _ = _ends(_start(body))
    assert (code, output) == (0, "7 False\nleft\n")


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


_AGENT = """
import os, signal, subprocess, sys, time
environment = {**os.environ, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
def start(rank, program):
    environment["LOCAL_RANK"] = str(rank)
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
rank = start(0, sys.argv[2])
sibling = start(1, "import time; print(flush=True); time.sleep(100)")
rank.stdout.readline(), sibling.stdout.readline()
if sys.argv[1] == "dies":
    sibling.kill()
    sibling.wait()
rank.send_signal(signal.SIGTERM)
code = rank.wait()
sibling.kill()
print("code", code)
"""


@pytest.mark.parametrize(("sibling", "code"), [("dies", 128 + signal.SIGTERM), ("lives", 0)])
def test_torchruns_signal_after_a_rank_died_ends_the_ranks_beside_it_at_once(
    sibling: str, code: int
) -> None:
    program = _PROGRAM.format(body="until_asked(stop)")
    done = subprocess.run(
        [sys.executable, "-c", _AGENT, sibling, program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"code {code}\n"
    assert ("a rank of this machine is gone" in done.stderr) == (sibling == "dies")
