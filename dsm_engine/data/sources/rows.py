"""From a file to its rows, each with its place, in bounded memory."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import orjson
import xxhash

from dsm_engine.data.example import ExampleFault
from dsm_engine.data.sources.compression import BUFFER_BYTES, open_contents
from dsm_engine.nearest import nearest

MAX_LINE_BYTES = 64 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ONE_A_LINE = "; one JSON object a line is expected"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record of a source as it stands there, before anybody has looked into it."""

    path: Path
    line: int
    """From 1: where the record begins, or, in a file without lines, its number."""
    byte: int | None
    """Where the record begins in the file, after decompression; None in a file without lines."""
    raw: bytes
    """The record without its line end; its first bytes where it was too long to be read."""
    position: int
    """How far into the file on disk reading has come, in bytes: for progress."""
    too_long: bool = False

    @property
    def place(self) -> str:
        """`file:line:byte`, or `file:row N` in a file without lines."""
        if self.byte is None:
            return f"{self.path}:row {self.line}"
        return f"{self.path}:{self.line}:{self.byte}"

    @property
    def digest(self) -> str:
        """The 64-bit XXH3 of the record: a stable id where the source has none."""
        return xxhash.xxh3_64(self.raw.strip()).hexdigest()


def read_lines(path: Path) -> Iterator[Row]:
    """The lines of a text file, compressed or not; blank lines are no rows.

    Raises DsmError where the file is missing, unreadable or damaged.
    """
    with open_contents(path) as (file, on_disk):
        yield from line_rows(file, on_disk, path)


def line_rows(
    file: BufferedReader,
    on_disk: BufferedReader,
    path: Path,
    *,
    begin: int = 0,
    end: float = math.inf,
) -> Iterator[Row]:
    """The lines of an open file that stands at byte `begin`, up to the one that reaches `end`.

    They are numbered from there.
    """
    line, byte = 0, begin
    while byte < end and (raw := file.readline(MAX_LINE_BYTES + 1)):
        line += 1
        size = len(raw)
        too_long = size > MAX_LINE_BYTES and not raw.endswith(b"\n")
        if too_long:
            raw, size = raw[:BUFFER_BYTES], size + _skip_line(file)
        place = byte
        if byte == 0 and raw.startswith(BYTE_ORDER_MARK):
            place, raw = len(BYTE_ORDER_MARK), raw.removeprefix(BYTE_ORDER_MARK)
        raw = raw.rstrip(b"\r\n")
        if raw.strip():
            yield Row(
                path=path,
                line=line,
                byte=place,
                raw=raw,
                position=on_disk.tell(),
                too_long=too_long,
            )
        byte += size


def parse_object(row: Row) -> dict[str, Any]:
    """The JSON object in a row. Raises ExampleFault, with a cause for each kind of damage."""
    if row.too_long:
        raise ExampleFault("line_too_long", f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        value = orjson.loads(row.raw)
    except orjson.JSONDecodeError as error:
        raise json_fault(row.raw, error) from error
    if not isinstance(value, dict):
        hint = _ONE_A_LINE if isinstance(value, list) else ""
        raise ExampleFault("not_an_object", f"is not a JSON object but {json_kind(value)}{hint}")
    return value


def text_field(record: dict[str, Any], key: str, cause: str) -> str:
    """The text under `key`, stripped. Raises ExampleFault where it is missing, blank or no text."""
    if record.get(key) is None:
        raise ExampleFault(cause, f"{key!r} is missing")
    value = record[key]
    if not isinstance(value, str):
        raise ExampleFault("bad_value", f"{key!r} is not text but {json_kind(value)}")
    if not (text := value.strip()):
        raise ExampleFault(cause, f"{key!r} is blank")
    return text


def optional_text(record: dict[str, Any], key: str) -> str:
    """The text under `key`; empty where there is none, a number as it is written."""
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ExampleFault("bad_value", f"{key!r} is not text but {json_kind(value)}")
    return value.strip()


def choice(record: dict[str, Any], key: str, known: Sequence[str]) -> Any:
    """The value under `key`, one of those known. Raises ExampleFault."""
    value = record.get(key)
    if value not in known:
        raise ExampleFault(
            "bad_value", f"{key!r} is {value!r:.80} {nearest(str(value)[:80], known)}"
        )
    return value


def _skip_line(file: BufferedReader) -> int:
    num_bytes = 0
    while chunk := file.readline(BUFFER_BYTES):
        num_bytes += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return num_bytes


def json_fault(raw: bytes, error: orjson.JSONDecodeError) -> ExampleFault:
    """What is wrong with a record that is no JSON."""
    try:
        raw.decode()
    except UnicodeDecodeError as decoding:
        return ExampleFault("bad_utf8", f"is not UTF-8 at byte {decoding.start} of the line")
    if "surrogate" in error.msg:
        return ExampleFault("lone_surrogate", f"half a character: {error.msg}")
    text = raw.strip()
    hint = _ONE_A_LINE if text.startswith(b"[") or text == b"{" else ""  # spread over lines
    return ExampleFault("bad_json", f"is not JSON: {error.msg} (column {error.colno}){hint}")


def json_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "nothing" if value is None else kinds.get(type(value), "a number")
