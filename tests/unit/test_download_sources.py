"""tools/download_sources.py against a local server: whole files or none, whatever it does."""

import gzip
import resource
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.errors import DsmError
from tests.download_server import (
    CONTENT,
    OTHER,
    Served,
    Server,
    a_source,
    catalogue_of,
    sha256,
)

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
try:
    import download_sources as tool
    from http_download import Patience, download
finally:
    sys.path.remove(str(REPOSITORY / "tools"))

PATIENCE = Patience(timeout_s=0.3, attempts=3, pause_s=0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Reached directly, whatever proxies the environment of the tests has."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def obtain(server: Server, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the tool for one file at /data/a.jsonl of the server; returns the faults."""

    def run(*, folder: Path | None = None, base_url: str | None = None, **changes: Any):
        catalogue = catalogue_of(a=a_source(server.url, **changes))
        places = tool.Places(tmp_path / "out", folder, base_url)
        return tool.obtain_sources(["a"], catalogue, places, patience=PATIENCE)

    return run


@pytest.fixture
def locked(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """What is recorded of the file at a path."""

    def record(path: str) -> dict[str, Any]:
        return orjson.loads((tmp_path / "out" / "sources.lock.json").read_bytes())[path]

    return record


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "a" / "a.jsonl"


def left_over(target: Path) -> list[str]:
    """What lies beside the file, its parts among them."""
    return sorted(path.name for path in target.parent.iterdir() if path != target)


# --- fetching -------------------------------------------------------------------------------------


def test_a_file_is_fetched_whole_and_recorded(server, obtain, target, tmp_path, capsys):
    server.files["/data/a.jsonl"] = Served()
    assert obtain() == []
    assert target.read_bytes() == CONTENT
    assert left_over(target) == []
    lock = orjson.loads((tmp_path / "out" / "sources.lock.json").read_bytes())
    url = f"{server.url}/data/a.jsonl"
    record = {"url": url, "from": url, "bytes": len(CONTENT), "sha256": sha256(CONTENT)}
    assert lock == {"a/a.jsonl": record}
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "a: training, MIT, 1 file, 1,048,576 bytes, reader jsonl"


def test_a_second_run_fetches_nothing(server, obtain, target):
    server.files["/data/a.jsonl"] = Served()
    obtain()
    assert obtain() == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_connection_is_continued_where_it_broke(server, obtain, target, chunked):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000, 300_000], chunked=chunked)
    assert obtain() == []
    assert target.read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_a_server_that_always_cuts_gets_as_many_attempts_as_bring_something(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[100_000] * 10)
    assert obtain() == []
    assert len(server.requests) == 11 > PATIENCE.attempts


def test_a_later_run_continues_an_earlier_one(server, obtain, target):
    served = server.files["/data/a.jsonl"] = Served(cuts=[300_000, 0, 0, 0])
    (fault,) = obtain()
    assert "given up after 3 attempts without progress, run again to continue" in fault
    assert not target.exists()
    assert served.cuts == []
    assert obtain() == []
    assert server.requests[-1] == ("/data/a.jsonl", "bytes=300000-")
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_file_again(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000], ranges=False)
    assert obtain() == []
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000] * 20, ranges=False)
    (fault,) = obtain()
    assert "given up after 3 attempts" in fault
    assert not target.exists()


@pytest.mark.parametrize("believes", [True, False])
@pytest.mark.parametrize("later", [OTHER, OTHER[:200_000]], ids=["same length", "shorter"])
def test_a_file_that_changed_in_between_is_never_glued_to_the_old(
    server, obtain, target, believes, later
):
    served = server.files["/data/a.jsonl"] = Served(cuts=[300_000, 0, 0, 0])
    obtain(sha256=None, bytes=None)
    served.content, served.etag, served.believes = later, '"two"', believes
    assert obtain(sha256=None, bytes=None) == []
    assert target.read_bytes() == later


def test_another_range_than_was_asked_for_is_not_taken(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000], shift=5)
    assert obtain(sha256=None) == []
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("num_bytes", [None, len(CONTENT)], ids=["not known", "known"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_range_shorter_than_was_asked_for_is_continued(
    server, obtain, target, num_bytes, chunked
):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000], most=400_000, chunked=chunked)
    assert obtain(bytes=num_bytes, sha256=None) == []
    assert target.read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=700000-"]


def test_a_range_of_a_file_of_unknown_length_is_not_taken_for_its_end(server, obtain, target):
    served = server.files["/data/a.jsonl"] = Served(cuts=[300_000], most=400_000, total="*")
    assert obtain(bytes=None, sha256=None) == []
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", None]

    target.unlink()
    served.cuts = [300_000]
    assert obtain(sha256=None) == []
    assert target.read_bytes() == CONTENT


def test_a_range_of_a_file_of_another_length_is_refused(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000], most=1000, total="2000000")
    (fault,) = obtain()
    assert "is 2,000,000 bytes, not 1,048,576: another file" in fault
    assert not target.exists()


def test_a_range_nobody_asked_for_is_refused(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(most=1000, unasked=True)
    (fault,) = obtain(bytes=None, sha256=None)
    assert "sends a range, unasked" in fault
    assert not target.exists()


def test_a_part_of_another_address_is_not_continued(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000, 0, 0, 0])
    server.files["/data/b.jsonl"] = Served(content=OTHER)
    obtain(sha256=None)
    assert obtain(sha256=None, remote="data/b.jsonl") == []
    assert target.read_bytes() == OTHER


def test_a_date_serves_where_there_is_no_etag(server, obtain, target):
    date = "Tue, 03 Sep 2024 10:00:00 GMT"
    server.files["/data/a.jsonl"] = Served(etag="", last_modified=date, cuts=[300_000])
    assert obtain() == []
    assert server.requests[-1][1] == "bytes=300000-"


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_nothing_is_continued_without_a_strong_validator(server, obtain, target, etag):
    server.files["/data/a.jsonl"] = Served(etag=etag, cuts=[300_000])
    assert obtain() == []
    assert [asked for _, asked in server.requests] == [None, None]
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_damaged_on_disk_is_fetched_again(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000, 0, 0, 0])
    obtain()
    part = target.with_name(".a.jsonl.part")
    part.write_bytes(bytes(300_000))
    assert obtain() == []
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_whole_is_not_fetched_again(server, tmp_path):
    server.files["/a"] = Served(cuts=[len(CONTENT) - 1, 0])
    part = tmp_path / "part"
    with pytest.raises(DsmError):
        download(f"{server.url}/a", part, patience=Patience(0.3, 1, 0.0))
    part.write_bytes(CONTENT)
    assert download(f"{server.url}/a", part, num_bytes=len(CONTENT), patience=PATIENCE)
    assert len(server.requests) == 2


def test_wrong_content_is_refused_and_leaves_nothing(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(content=OTHER)
    (fault,) = obtain()
    assert f"its SHA-256 is {sha256(OTHER)}, sources.yaml has {sha256(CONTENT)}" in fault
    assert not target.exists()
    assert left_over(target) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT * 2], ids=["by one", "by far"])
def test_too_much_is_refused_and_leaves_nothing(server, obtain, target, content, chunked):
    server.files["/data/a.jsonl"] = Served(content=content, chunked=chunked)
    (fault,) = obtain(sha256=None)
    assert "another file" in fault
    assert not target.exists()
    assert left_over(target) == []


def test_too_little_is_refused_before_it_is_fetched(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(content=CONTENT[:-1])
    (fault,) = obtain()
    assert "is 1,048,575 bytes, not 1,048,576: another file" in fault
    assert not target.exists()


def test_an_end_nobody_knows_is_not_taken_for_the_end(server, obtain, target):
    served = Served(headers={"Connection": "close"}, cuts=[300_000])
    served.headers["Content-Length"] = ""
    server.files["/data/a.jsonl"] = served
    (fault,) = obtain(sha256=None, bytes=None)
    assert "does not say where the file ends" in fault
    assert not target.exists()


def test_a_compressed_transfer_is_refused(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(headers={"Content-Encoding": "gzip"})
    (fault,) = obtain()
    assert "sends it as gzip" in fault
    assert not target.exists()


def test_a_missing_file_is_one_line_and_is_not_asked_for_again(server, obtain, target):
    (fault,) = obtain(unverified="guessed from its neighbour")
    assert fault == (
        f"a: {server.url}/data/a.jsonl: HTTP 404 Not Found (unverified: guessed from its neighbour)"
    )
    assert len(server.requests) == 1
    assert not target.exists()


def test_a_server_that_is_busy_is_asked_again(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(status=[503, 429])
    assert obtain() == []
    assert target.read_bytes() == CONTENT


def test_a_busy_server_says_how_long_to_wait(server, obtain, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("http_download.time.sleep", slept.append)
    server.files["/data/a.jsonl"] = Served(status=[503], headers={"Retry-After": "7"})
    assert obtain() == []
    assert slept == [7.0]


def test_a_server_that_stays_busy_is_given_up(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(status=[503] * 9)
    (fault,) = obtain()
    assert "HTTP 503" in fault
    assert len(server.requests) == PATIENCE.attempts


def test_a_server_that_falls_silent_is_left_and_asked_again(server, obtain, target):
    server.files["/data/a.jsonl"] = Served(cuts=[300_000], hangs=True)
    assert obtain() == []
    assert server.requests[-1][1] == "bytes=300000-"
    assert target.read_bytes() == CONTENT


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DsmError, match="given up after 3 attempts"):
        download(f"http://127.0.0.1:{port}/a", tmp_path / "part", patience=PATIENCE)


def test_a_host_nobody_knows_is_not_asked_for_again(tmp_path, monkeypatch):
    asked: list[Any] = []

    def unknown(host: Any, *rest: Any, **options: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DsmError, match=r"cannot be reached: .*not known"):
        download("http://nowhere.invalid/a", tmp_path / "part", patience=PATIENCE)
    assert asked == ["nowhere.invalid"]


@pytest.mark.parametrize("from_folder", [False, True])
def test_a_disk_that_takes_no_more_is_one_line_and_the_file_is_had_later(
    server, obtain, target, tmp_path, from_folder
):
    server.files["/data/a.jsonl"] = Served()
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(CONTENT)
    chosen = folder if from_folder else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        (fault,) = obtain(folder=chosen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in fault
    assert not target.exists()
    assert obtain(folder=chosen) == []
    assert target.read_bytes() == CONTENT


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 3000), max_size=8),
    changes=st.lists(st.sampled_from([None, (b"b" * 3000, '"b"'), (b"c" * 2000, '"c"')])),
    ranges=st.booleans(),
    most=st.none() | st.integers(1, 2000),
    total=st.sampled_from(["{}", "*"]),
    believes=st.booleans(),
    chunked=st.booleans(),
    num_runs=st.integers(1, 3),
)
def test_whatever_a_server_does_a_file_is_one_it_had(num_runs, **behaviour):
    """Connections are cut and the file changes, in any order, over several runs."""
    server = Server()
    server.files["/a"] = Served(content=b"a" * 3000, etag='"a"', **behaviour)
    try:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            part = Path(folder) / "part"
            for _ in range(num_runs):
                try:
                    download(f"{server.url}/a", part, patience=Patience(1.0, 2, 0.0))
                except DsmError:
                    continue
                content = part.read_bytes()
                assert content in (b"a" * 3000, b"b" * 3000, b"c" * 2000)
                return
    finally:
        server.close()


def test_one_file_that_cannot_be_had_does_not_keep_the_others(server, tmp_path):
    server.files["/b"] = Served()
    catalogue = catalogue_of(
        a=a_source(server.url),
        b=a_source(server.url, remote="b", path="b/b.jsonl"),
    )
    places = tool.Places(tmp_path / "out")
    (fault,) = tool.obtain_sources(["a", "b"], catalogue, places, patience=PATIENCE)
    assert "HTTP 404" in fault
    assert (tmp_path / "out" / "b" / "b.jsonl").read_bytes() == CONTENT


# --- checksums, known and not known ---------------------------------------------------------------


def test_a_first_download_without_a_checksum_is_what_the_second_is_compared_with(
    server, obtain, target, capsys
):
    server.files["/data/a.jsonl"] = Served()
    assert obtain(sha256=None, bytes=None) == []
    assert "SHA-256 not known before" in capsys.readouterr().out
    target.unlink()
    server.files["/data/a.jsonl"] = Served(content=OTHER)
    (fault,) = obtain(sha256=None, bytes=None)
    assert "sources.lock.json, from an earlier download, has" in fault
    assert not target.exists()


def test_another_address_is_not_compared_with_what_came_from_the_first(server, obtain, target):
    server.files["/data/a.jsonl"] = Served()
    server.files["/data/b.jsonl"] = Served(content=OTHER)
    obtain(sha256=None)
    target.unlink()
    assert obtain(sha256=None, remote="data/b.jsonl") == []
    assert target.read_bytes() == OTHER


def test_another_file_under_the_final_name_is_left_alone(server, obtain, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(OTHER)
    (fault,) = obtain()
    assert "move it away to have it fetched" in fault
    assert target.read_bytes() == OTHER
    assert server.requests == []


def test_a_record_of_downloads_that_is_damaged_is_one_line(obtain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sources.lock.json").write_text("[1]")
    with pytest.raises(DsmError, match="is not a record of downloads"):
        obtain()


def test_two_runs_at_once_do_not_write_the_same_folder(obtain, tmp_path):
    with (
        tool._alone(tmp_path / "out"),
        pytest.raises(DsmError, match="another download is writing here"),
    ):
        obtain()


# --- a folder of files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a/a.jsonl", "data/a.jsonl", "a.jsonl", "deep/down/a.jsonl", "x/data__a.jsonl"]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_is_found_in_a_folder_by_path_or_name(
    server, obtain, target, tmp_path, name, compressed
):
    path = tmp_path / "here" / (f"{name}.gz" if compressed else name)
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(CONTENT, 1) if compressed else CONTENT)
    assert obtain(folder=tmp_path / "here") == []
    assert target.read_bytes() == CONTENT
    assert server.requests == []
    assert left_over(target) == []


def test_the_checksum_tells_which_of_several_files_it_is(obtain, target, tmp_path):
    for name, content in (("a", OTHER), ("b", CONTENT), ("c", b"x")):
        path = tmp_path / "here" / name / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert obtain(folder=tmp_path / "here") == []
    assert target.read_bytes() == CONTENT
    target.unlink()
    (tmp_path / "here" / "b" / "a.jsonl").unlink()
    (fault,) = obtain(folder=tmp_path / "here")
    assert "none of the 2 files with the name of a/a.jsonl is the one" in fault


def test_several_files_of_one_name_are_refused_where_no_checksum_is_known(obtain, target, tmp_path):
    for name in ("x", "y"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "a.jsonl").write_bytes(CONTENT)
    (fault,) = obtain(folder=tmp_path / "here", sha256=None)
    assert "could each be a/a.jsonl; put the right one at" in fault
    assert not target.exists()


def test_a_folder_without_the_file_is_one_line(server, obtain, target, tmp_path):
    (tmp_path / "here").mkdir()
    (fault,) = obtain(folder=tmp_path / "here")
    assert fault == f"a: {tmp_path}/here: has no a/a.jsonl, by path or name, with or without .gz"
    (fault,) = obtain(folder=tmp_path / "nowhere")
    assert "is no folder" in fault
    assert server.requests == []


def test_a_damaged_gzip_file_of_a_folder_is_one_line(obtain, target, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl.gz").write_bytes(gzip.compress(CONTENT)[:-20])
    (fault,) = obtain(folder=tmp_path / "here")
    assert "cannot be copied" in fault
    assert not target.exists()


# --- archives -------------------------------------------------------------------------------------


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> dict[str, Any]:
    """The catalogue's keys of a zip archive the server has."""
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("inner/train.json", CONTENT)
    server.files["/data/a.zip"] = Served(content=path.read_bytes())
    keys = {"remote": "data/a.zip", "path": "a/a.zip", "bytes": None}
    return keys | {"sha256": sha256(path.read_bytes())}


def test_members_are_taken_out_of_an_archive(server, obtain, archive, tmp_path):
    archive["members"] = {"a/train.json": "inner/train.json"}
    assert obtain(**archive) == []
    assert (tmp_path / "out" / "a" / "train.json").read_bytes() == CONTENT
    assert obtain(**archive) == []
    assert len(server.requests) == 1
    (tmp_path / "out" / "a" / "train.json").write_bytes(OTHER)
    (fault,) = obtain(**archive)
    assert "move it away" in fault


@pytest.mark.parametrize("there", [CONTENT[:1000], OTHER], ids=["cut short", "other contents"])
def test_a_member_that_stands_there_already_is_compared_with_the_archive(
    server, obtain, archive, tmp_path, locked, there
):
    archive["members"] = {"a/train.json": "inner/train.json"}
    member = tmp_path / "out" / "a" / "train.json"
    member.parent.mkdir(parents=True)
    member.write_bytes(there)
    (fault,) = obtain(**archive)
    assert f"{member}: is {len(there):,} bytes with CRC-32" in fault
    assert "move it away to have it taken out" in fault
    assert member.read_bytes() == there

    member.write_bytes(CONTENT)
    assert obtain(**archive) == []
    assert locked("a/train.json")["sha256"] == sha256(CONTENT)


def test_where_a_file_came_from_is_recorded_and_kept(server, obtain, archive, tmp_path, locked):
    archive["members"] = {"a/train.json": "inner/train.json"}
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = folder / "a.zip"
    copy.write_bytes(server.files["/data/a.zip"].content)
    for _ in range(2):
        assert obtain(folder=folder, **archive) == []
        assert locked("a/a.zip")["from"] == str(copy)
        assert locked("a/a.zip")["url"] == f"{server.url}/data/a.zip"
        assert locked("a/train.json")["from"] == "a/a.zip"


def test_a_file_that_was_there_before_has_no_recorded_origin(server, obtain, target, locked):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    assert obtain() == []
    assert locked("a/a.jsonl")["from"] is None


def test_a_member_that_is_not_there_names_the_nearest(obtain, archive, tmp_path):
    archive["members"] = {"a/train.json": "inner/trian.json"}
    (fault,) = obtain(**archive)
    assert "has no inner/trian.json (did you mean 'inner/train.json'?)" in fault
    assert not (tmp_path / "out" / "a" / "train.json").exists()


def test_a_file_that_is_no_archive_is_one_line(server, obtain, tmp_path):
    server.files["/data/a.jsonl"] = Served()
    (fault,) = obtain(members={"a/train.json": "x"})
    assert "x cannot be taken out" in fault


# --- servers and proxies --------------------------------------------------------------------------


def test_a_server_with_a_copy_of_the_folder_is_asked_by_path(server, obtain, target, locked):
    server.files["/mirror/a/a.jsonl"] = Served()
    assert obtain(base_url=f"{server.url}/mirror") == []
    assert target.read_bytes() == CONTENT
    assert locked("a/a.jsonl")["url"] == f"{server.url}/data/a.jsonl"
    assert locked("a/a.jsonl")["from"] == f"{server.url}/mirror/a/a.jsonl"


def test_a_mirror_of_the_hub_is_asked_in_its_place(server, tmp_path):
    server.files["/datasets/x/resolve/1/data/a.jsonl"] = Served()
    address = "https://huggingface.co/datasets/x/resolve/1"
    catalogue = catalogue_of(a=a_source(address))
    places = tool.Places(tmp_path / "out", hub=server.url)
    assert tool.obtain_sources(["a"], catalogue, places, patience=PATIENCE) == []
    lock = orjson.loads((tmp_path / "out" / "sources.lock.json").read_bytes())
    assert lock["a/a.jsonl"]["url"] == f"{address}/data/a.jsonl"
    assert lock["a/a.jsonl"]["from"] == f"{server.url}/datasets/x/resolve/1/data/a.jsonl"


def test_the_proxy_of_the_environment_is_used_but_not_for_what_it_excepts(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://far.invalid/a"] = server.files["/a"] = Served()
    download("http://far.invalid/a", tmp_path / "far", patience=PATIENCE)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    download(f"{server.url}/a", tmp_path / "near", patience=PATIENCE)
    assert [path for path, _ in server.requests] == ["http://far.invalid/a", "/a"]
    assert (tmp_path / "far").read_bytes() == (tmp_path / "near").read_bytes() == CONTENT


def test_https_that_leads_to_plain_http_is_refused():
    response = type("Response", (), {"url": "http://a.example/x", "headers": {}})
    with pytest.raises(DsmError, match="not encrypted"):
        sys.modules["http_download"]._check_transport("https://a.example/x", response)


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def run_tool(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    """Runs main with a catalogue of one file; returns exit code, output and errors."""
    sources = {"a": a_source(server.url), "b_test": a_source(server.url, path="b/b.jsonl")}
    sources["b_test"] |= {"kind": "benchmark", "note": "for research alone", "restricted": True}
    path = tmp_path / "sources.yaml"
    path.write_bytes(orjson.dumps({"sources": sources}))  # JSON is YAML
    catalogue = tool.load_catalogue(path)
    monkeypatch.setattr(tool, "load_catalogue", lambda: catalogue)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        code = tool.main([*words, "--output", str(tmp_path / "out")])
        return code, *capsys.readouterr()

    return run


def test_the_list_says_use_licence_and_size_and_fetches_nothing(server, run_tool):
    code, out, _ = run_tool("--list")
    assert code == 0
    assert out.splitlines() == [
        "a: training, MIT, 1 file, 1,048,576 bytes, reader jsonl",
        "b_test: benchmark, MIT (for research alone), 1 file, 1,048,576 bytes, reader jsonl",
    ]
    assert server.requests == []
    assert run_tool("--list", "--benchmarks")[1].startswith("b_test:")


def test_what_may_not_be_used_freely_is_fetched_only_where_that_is_accepted(
    server, run_tool, tmp_path
):
    server.files["/data/a.jsonl"] = Served()
    code, _, errors = run_tool("--benchmarks")
    assert code == 2
    assert errors == (
        "download_sources: error: b_test: for research alone; add --accept-restricted to have it"
        " fetched\n"
    )
    assert server.requests == []
    assert run_tool("b_test", "--accept-restricted")[0] == 0
    assert (tmp_path / "out" / "b" / "b.jsonl").read_bytes() == CONTENT


def test_an_unknown_name_is_one_line_that_names_the_nearest(run_tool):
    assert run_tool("b_tset") == (
        2,
        "",
        "download_sources: error: unknown source 'b_tset' (did you mean 'b_test'?)\n",
    )


def test_names_and_a_kind_are_not_both_asked_for(run_tool):
    code, _, errors = run_tool("a", "--benchmarks")
    assert (code, "not both" in errors) == (2, True)


@pytest.mark.parametrize("url", ["ftp://a.example", "/srv/data", "a.example"])
def test_a_server_that_is_no_address_is_one_line(run_tool, monkeypatch, url):
    assert "is not an address" in run_tool("a", "--base-url", url)[2]
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert "HF_ENDPOINT" in run_tool("a")[2]


def test_the_script_lists_every_source_of_the_catalogue():
    command = [sys.executable, str(REPOSITORY / "tools" / "download_sources.py"), "--list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = [line.partition(":")[0] for line in listed.splitlines()]
    assert names == list(tool.load_catalogue().sources)
