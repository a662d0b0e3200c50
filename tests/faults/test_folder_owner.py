"""Two runs in one folder, on machines whose locks do not see each other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.training.faults import owner
from dsm_engine.training.faults.exits import FOLDER_TAKEN
from dsm_engine.training.faults.owner import FolderOwner, began_by
from dsm_engine.training.run_folder import only_writer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.1)
    monkeypatch.setattr(owner, "WATCH_S", 0.5)


def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_this_machine", lambda: "another machine")


def test_a_live_run_of_another_machine_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderOwner(tmp_path, agents=[]):
        _elsewhere(monkeypatch)
        message = rf"process {os.getpid()} on .* is writing here since .*; stop it"
        with pytest.raises(DsmError, match=message), FolderOwner(tmp_path, agents=[]):
            pass


def test_a_run_that_died_on_another_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderOwner(tmp_path, agents=[]):
        killed = read_json(tmp_path / ".owner.json")
    assert killed["beat"] is not None
    write_json(tmp_path / ".owner.json", killed)
    _elsewhere(monkeypatch)
    started = time.monotonic()
    with FolderOwner(tmp_path, agents=[]):
        assert read_json(tmp_path / ".owner.json")["token"] != killed["token"]
    assert time.monotonic() - started >= owner.WATCH_S


def test_a_run_that_left_is_followed_without_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderOwner(tmp_path, agents=[]):
        pass
    _elsewhere(monkeypatch)
    monkeypatch.setattr(owner, "WATCH_S", 1000.0)
    with FolderOwner(tmp_path, agents=[]):
        pass


def test_a_run_whose_folder_was_taken_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from dsm_engine.training.faults import owner\n"
        "owner.BEAT_S = 0.1\n"
        "with owner.FolderOwner(Path(sys.argv[1]), agents=[]):\n"
        "    print('ready', flush=True); time.sleep(20)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    path = tmp_path / ".owner.json"
    write_json(path, {**read_json(path), "token": "another", "host": "elsewhere"})
    _, errors = process.communicate(timeout=20)
    assert process.returncode == FOLDER_TAKEN
    assert "on elsewhere has taken the folder over" in errors


def test_a_run_is_gone_on_with_by_the_agents_that_began_it(tmp_path: Path) -> None:
    assert not began_by(tmp_path, "here/12/3")
    with FolderOwner(tmp_path, agents=["here/12/3", "there/40/9"]):
        pass
    assert began_by(tmp_path, "there/40/9")
    assert not began_by(tmp_path, "here/12/4"), "another process with the same number"


def test_a_forked_process_does_not_hold_the_lock_of_a_run_that_ended(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with only_writer(tmp_path):
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"x")
            time.sleep(1.5)
            os._exit(0)
        assert os.read(reading, 1) == b"x"
    started = time.monotonic()
    with only_writer(tmp_path):
        assert time.monotonic() - started < 1
    os.waitpid(pid, 0)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / ".owner.json", {"host": 3})
    with pytest.raises(DsmError, match=r"\.owner\.json: "), FolderOwner(tmp_path, agents=[]):
        pass
