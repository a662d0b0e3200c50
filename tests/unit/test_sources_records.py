"""Containers: JSONL, JSON lists, objects over lines, Parquet; compressed or not; and damage."""

import gzip
import sys
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.sources import json_values, rows
from dsm_engine.data.sources.records import read_records
from dsm_engine.errors import DsmError

RECORDS = [{"q": 'a "quoted" ]}\\'}, {"q": "二", "deep": [{"x": [1]}]}, {"q": ""}]


def pack(content: bytes, kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress(content)
    if kind == "zst":
        pyarrow = pytest.importorskip("pyarrow")
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content


def content_of(kind: str) -> bytes:
    pretty = [orjson.dumps(record, option=orjson.OPT_INDENT_2) for record in RECORDS]
    return {
        "lines": b"\n".join(orjson.dumps(record) for record in RECORDS),
        "list": orjson.dumps(RECORDS),
        "pretty list": b" [\n" + b",\n".join(pretty) + b"\n]\n",
        "objects": b"\n".join(pretty) + b"\n",
        "crlf": b"\r\n".join(pretty).replace(b"\n", b"\r\n"),
        "mark": b"\xef\xbb\xbf" + orjson.dumps(RECORDS),
        "member": b'{"keywords": "k",\n "example" : ' + orjson.dumps(RECORDS) + b', "n": [{}]}',
    }[kind]


@pytest.mark.parametrize("compression", ["none", "gz", "zst"])
@pytest.mark.parametrize(
    "kind", ["lines", "list", "pretty list", "objects", "crlf", "mark", "member"]
)
@pytest.mark.parametrize("num_bytes", [3, 1 << 20])
def test_every_container_gives_its_records_and_their_places(
    tmp_path: Path, monkeypatch, compression, kind, num_bytes
):
    monkeypatch.setattr(json_values, "BUFFER_BYTES", num_bytes)
    content = content_of(kind)
    path = tmp_path / "a"
    path.write_bytes(pack(content, compression))
    found = list(read_records(path, members=["example"]))
    assert [orjson.loads(row.raw.removeprefix(rows.BYTE_ORDER_MARK)) for row in found] == RECORDS
    for row in found:
        assert row.byte is not None
        begin = row.byte if row.byte or kind != "mark" else 3
        assert content[begin:].startswith(row.raw)
        assert row.line == 1 + content[:begin].count(b"\n")
        assert 0 <= row.position <= path.stat().st_size


@pytest.mark.parametrize("content", [b"[]", b" [ \n ]\n", b"{\n}", b"\n"])
def test_a_list_of_nothing_has_no_rows(tmp_path: Path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert len(list(read_records(path))) == (content == b"{\n}")


@pytest.mark.parametrize(
    ("content", "raws"),
    [
        (b'[{"a":1}, 5, {"b":2}]', [b'{"a":1}', b"5", b'{"b":2}']),
        (b'[{"a":1} "x, y" [1]]', [b'{"a":1}', b'"x, y"', b"[1]"]),
        (b'[\n{"a":}, {"b":2},]', [b'{"a":}', b'{"b":2}']),
        (b'{\n"a":1}\n] 7\n{"b":2}', [b'{\n"a":1}', b"] 7", b'{"b":2}']),
        (b'{\n"a":1}\n{"b":2}}', [b'{\n"a":1}', b'{"b":2}', b"}"]),
        (b'{\n{"a":1}\n{"b":2}', [b"{", b'{"a":1}', b'{"b":2}']),
        (b"{", [b"{"]),
    ],
)
def test_what_is_no_record_is_a_row_all_the_same(tmp_path: Path, content, raws):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert [row.raw for row in read_records(path)] == raws


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a":1},\n{"b":2}', r"a:2: the file ends within its JSON list"),
        (b'[{"a":1},\n{"b":2', r"a:2: the record here is not closed"),
        (b'{\n"a":1}\n{"b":"', r"a:3: the record here is not closed"),
        (b'{\n"a":\n{"b":1}\n{"c":2}', r"a:1: the record here is not closed"),
        (b"[\n", r"a:1: the file ends within its JSON list"),
        (b'[{"a":1}]\n{"b":2}', r"a:1: more follows the end of the JSON list"),
        (b'[{"a":1},\n{"b":"' + b"x" * 90, r"a:1: a record of more than 60 bytes"),
    ],
)
def test_a_damaged_list_is_one_clear_line(tmp_path: Path, monkeypatch, content, message):
    monkeypatch.setattr(json_values, "BUFFER_BYTES", 16)
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 60)
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DsmError, match=message):
        list(read_records(path))


def test_a_damaged_zst_file_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pack(b'{"a": 1}\n' * 50, "zst")[:-3])
    with pytest.raises(DsmError, match=r"a\.jsonl\.zst: cannot be read: "):
        list(read_records(path))


def test_parquet_rows_are_the_records_by_number(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = [{"q": f"{number}", "blocks": [{"n": number}]} for number in range(3000)]
    path = tmp_path / "a.bin"
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    found = list(read_records(path))
    assert [orjson.loads(row.raw) for row in found] == records
    assert found[6].place == f"{path}:row 7"
    assert found[-1].position == path.stat().st_size


def test_damaged_or_unfit_parquet_is_one_clear_line(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"q": [b"\xff"]}), path)
    with pytest.raises(DsmError, match=r"a\.parquet:row 1: has a value that JSON cannot hold"):
        list(read_records(path))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DsmError, match=r"a\.parquet: cannot be read as Parquet: "):
        list(read_records(path))


@pytest.mark.parametrize("magic", [b"PAR1....", b"\x28\xb5\x2f\xfd...."])
def test_without_pyarrow_the_message_names_the_extra(tmp_path: Path, monkeypatch, magic):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a"
    path.write_bytes(magic)
    with pytest.raises(DsmError, match=r"install dsm-engine\[data\]"):
        list(read_records(path))
