"""Files of one JSON object a line in blocks of many lines, for readers that take no row apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsm_engine.data.sources.compression import open_contents
from dsm_engine.data.sources.parquet import PARQUET_MAGIC, read_parquet
from dsm_engine.data.sources.rows import BYTE_ORDER_MARK, MAX_LINE_BYTES

BLOCK_BYTES = 2 << 20


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
    """Of the lines as they stand in the file, line ends included."""

    def place(self, line_idx: int) -> str:
        """`file:line:byte` of a line, or `file:row N` in a file without lines."""
        line = self.first_line + line_idx
        if self.first_byte is None:
            return f"{self.path}:row {line}"
        if line_idx == 0:
            return f"{self.path}:{line}:{self.first_byte}"
        # From the end: bytes of the first line may have been left out.
        behind = sum(len(content) + 1 for content in self.lines[line_idx:])
        return f"{self.path}:{line}:{self.first_byte + self.num_bytes - behind}"


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
        line, rest, num_dropped = 1, bytearray(), 0
        while chunk := file.read(BLOCK_BYTES):
            whole, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                kept = chunk[: MAX_LINE_BYTES + 1 - len(rest)]
                rest += kept
                num_dropped += len(chunk) - len(kept)
                continue
            content = b"".join((rest, whole))
            lines = content.split(b"\n")
            size = len(content) + 1 + num_dropped
            yield LineBlock(
                path=path, lines=lines, first_line=line, first_byte=byte, num_bytes=size
            )
            line, byte, rest, num_dropped = line + len(lines), byte + size, bytearray(tail), 0
        if rest:
            size = len(rest) + num_dropped
            yield LineBlock(
                path=path, lines=[bytes(rest)], first_line=line, first_byte=byte, num_bytes=size
            )


def _parquet_blocks(path: Path) -> Iterator[LineBlock]:
    lines: list[bytes] = []
    first_line, num_bytes = 1, 0
    for row in read_parquet(path):
        lines.append(row.raw)
        num_bytes += len(row.raw)
        if num_bytes >= BLOCK_BYTES:
            yield _parquet_block(path, lines, first_line, num_bytes)
            lines, first_line, num_bytes = [], row.line + 1, 0
    if lines:
        yield _parquet_block(path, lines, first_line, num_bytes)


def _parquet_block(path: Path, lines: list[bytes], first_line: int, num_bytes: int) -> LineBlock:
    return LineBlock(
        path=path, lines=lines, first_line=first_line, first_byte=None, num_bytes=num_bytes
    )
