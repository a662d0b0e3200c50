"""The cache of program results: what is kept, for whom, and what damage leads to."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dsm_engine.data.quality.program_cache import ProgramCache, default_cache_path
from dsm_engine.errors import DsmError
from dsm_engine.sandbox import ProgramResult


def result(stdout: str = "", error: str = "", *, timed_out: bool = False) -> ProgramResult:
    return ProgramResult(stdout=stdout, error=error, timed_out=timed_out)


def test_results_come_back_from_another_opening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.sqlite"
    results = {"print('答案')": result("答案\n"), "1 / 0": result("", "ZeroDivisionError: x")}
    with ProgramCache(path) as cache:
        assert cache.get("here", list(results)) == {}
        cache.put("here", results)
    with ProgramCache(path) as cache:
        assert cache.get("here", [*results, "pass"]) == results
        assert cache.get("elsewhere", list(results)) == {}


def test_more_programs_than_one_query_takes(tmp_path: Path) -> None:
    results = {f"print({number})": result(f"{number}\n") for number in range(1201)}
    with ProgramCache(tmp_path / "cache") as cache:
        cache.put("here", results)
        assert cache.get("here", list(results)) == results


@pytest.mark.parametrize(
    "unrepeatable",
    [
        result(error="TimeoutError: the program ran longer than 2 s", timed_out=True),
        result(error="killed by signal SIGKILL"),
        result(error="the program ended its sandbox"),
        result("".join(chr(33 + number * number % 8191) for number in range(60_000))),
    ],
)
def test_what_the_machine_did_and_what_is_huge_is_not_kept(
    tmp_path: Path, unrepeatable: ProgramResult
) -> None:
    with ProgramCache(tmp_path / "cache") as cache:
        cache.put("here", {"a": unrepeatable, "b": result("1\n")})
        assert list(cache.get("here", ["a", "b"])) == ["b"]


def test_a_file_that_is_no_cache_is_an_error_of_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, and longer than a header of one hundred bytes. " * 9)
    other = tmp_path / "other"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (value)")
    database.close()
    for path in (text, other, tmp_path):
        with pytest.raises(DsmError, match="delete it, and programs run again") as caught:
            ProgramCache(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_damaged_record_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with ProgramCache(path) as cache:
        cache.put("here", {"a": result("1\n")})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE results SET record = x'00'")
    database.close()
    with ProgramCache(path) as cache, pytest.raises(DsmError, match="delete it"):
        cache.get("here", ["a"])


def test_damage_in_the_middle_of_the_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    programs = {f"print({number})": result(f"{number}\n") for number in range(2000)}
    with ProgramCache(path) as cache:
        cache.put("here", programs)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DsmError, match="delete it"), ProgramCache(path) as cache:
        cache.get("here", list(programs))


def _fill(path: Path, first: int) -> None:
    with ProgramCache(path) as cache:
        for start in range(first, first + 400, 20):
            numbers = range(start, start + 20)
            cache.put("here", {f"print({n})": result(f"{n}\n") for n in numbers})


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(path, first)) for first in (0, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with ProgramCache(path) as cache:
        found = cache.get("here", [f"print({number})" for number in range(600)])
    assert found == {f"print({number})": result(f"{number}\n") for number in range(600)}


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path\n"
        "from dsm_engine.data.quality.program_cache import ProgramCache\n"
        "from dsm_engine.sandbox import ProgramResult\n"
        "cache, n = ProgramCache(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    cache.put('', {f'{n}': ProgramResult(stdout='x', error='', timed_out=False)})\n"
        "    n += 1\n"
        "    if n == 20: print(flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with ProgramCache(path) as cache:
        assert len(cache.get("", [str(number) for number in range(20)])) == 20
        cache.put("", {"next": result("y")})


def test_the_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_path() == Path("/somewhere/dsm_engine/programs.sqlite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_path() == Path.home() / ".cache" / "dsm_engine" / "programs.sqlite"
