"""Files of one JSON object a line in blocks of many lines, for readers that take no row apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dsm_engine.data.sources.compression import open_contents
from dsm_engine.data.sources.parquet import PARQUET_MAGIC, read_parquet
from dsm_engine.data.sources.rows import BYTE_ORDER_MARK, MAX_LINE_BYTES

BLOCK_BYTES = 2 << 20
_PARQUET_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class LineBlock:
    """Lines of a file, in order."""

    path: Path
    lines: list[bytes]
    """Without their ends; the first bytes of one that is longer than MAX_LINE_BYTES."""
    first_line: int
    """Its number, from 1."""
    first_byte: int | None
    """Where it begins, after decompression; None in a file without lines."""
    num_bytes: int

    def place(self, line_idx: int) -> str:
        """`file:line:byte` of a line, or `file:row N` in a file without lines."""
        line = self.first_line + line_idx
        if self.first_byte is None:
            return f"{self.path}:row {line}"
        before = sum(len(content) + 1 for content in self.lines[:line_idx])
        return f"{self.path}:{line}:{self.first_byte + before}"


def read_line_blocks(path: Path) -> Iterator[LineBlock]:
    """The lines of a text file, compressed or not, or the rows of a Parquet file as JSON.

    Memory is bounded by the largest line. Raises DsmError where the file is at fault.
    """
    with open_contents(path) as (file, _):
        head = file.peek()
        if head.startswith(PARQUET_MAGIC):
            yield from _parquet_blocks(path)
            return
        byte = len(file.read(len(BYTE_ORDER_MARK))) if head.startswith(BYTE_ORDER_MARK) else 0
        line, rest, num_dropped = 1, b"", 0
        while chunk := file.read(BLOCK_BYTES):
            whole, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                rest += chunk
                num_dropped += max(0, len(rest) - MAX_LINE_BYTES - 1)
                rest = rest[: MAX_LINE_BYTES + 1]
                continue
            content = rest + whole if rest else whole
            lines = content.split(b"\n")
            size = len(content) + 1 + num_dropped
            yield LineBlock(
                path=path, lines=lines, first_line=line, first_byte=byte, num_bytes=size
            )
            line, byte, rest, num_dropped = line + len(lines), byte + size, tail, 0
        if rest:
            size = len(rest) + num_dropped
            yield LineBlock(
                path=path, lines=[rest], first_line=line, first_byte=byte, num_bytes=size
            )


def _parquet_blocks(path: Path) -> Iterator[LineBlock]:
    rows = read_parquet(path)
    while batch := list(islice(rows, _PARQUET_ROWS)):
        lines = [row.raw for row in batch]
        yield LineBlock(
            path=path,
            lines=lines,
            first_line=batch[0].line,
            first_byte=None,
            num_bytes=sum(map(len, lines)),
        )
