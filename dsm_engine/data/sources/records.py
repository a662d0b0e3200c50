"""From a file of any of the usual kinds to its rows; which kind it is, its contents say."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsm_engine.data.sources.compression import open_contents
from dsm_engine.data.sources.json_values import JsonValues
from dsm_engine.data.sources.parquet import PARQUET_MAGIC, read_parquet
from dsm_engine.data.sources.rows import BYTE_ORDER_MARK, Row, line_rows

_LIST_OF_OBJECTS = re.compile(rb"\s*\[(?=\s*(?:[{\]]|\Z))")
_OBJECT_OVER_LINES = re.compile(rb'\s*(?=\{[ \t]*\r?\n\s*(?:["}]|\Z))')


def read_records(path: Path, *, members: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of JSONL, a JSON list, JSON objects spread over lines, or Parquet.

    Text may be compressed with gzip or Zstandard. Where the file is one object with a list under
    one of `members`, the rows are that list's. Raises DsmError where the file is at fault.
    """
    with open_contents(path) as (file, on_disk):
        head = file.peek()
        if head.startswith(PARQUET_MAGIC):
            yield from read_parquet(path)
            return
        text = head.removeprefix(BYTE_ORDER_MARK)
        mark = len(head) - len(text)
        values = JsonValues(file, on_disk, path)
        if match := _member_list(text, members):
            yield from values.read(head=file.read(mark + match.end()), within="member")
        elif match := _LIST_OF_OBJECTS.match(text):
            yield from values.read(head=file.read(mark + match.end()), within="list")
        elif match := _OBJECT_OVER_LINES.match(text):
            yield from values.read(head=file.read(mark + match.end()), within="file")
        else:
            yield from line_rows(file, on_disk, path)


def is_lines(path: Path, *, members: Sequence[str] = ()) -> bool:
    """Whether `read_records` would read the file as plain lines: nothing compressed, no list.

    Raises DsmError where it cannot be read.
    """
    with open_contents(path) as (file, on_disk):
        head = file.peek()
        text = head.removeprefix(BYTE_ORDER_MARK)
        return file is on_disk and not (
            head.startswith(PARQUET_MAGIC)
            or _member_list(text, members)
            or _LIST_OF_OBJECTS.match(text)
            or _OBJECT_OVER_LINES.match(text)
        )


def _member_list(text: bytes, members: Sequence[str]) -> re.Match[bytes] | None:
    if not members or not text.lstrip().startswith(b"{"):
        return None
    names = b"|".join(re.escape(member.encode()) for member in members)
    return re.search(rb'"(?:' + names + rb')"\s*:\s*\[', text)
