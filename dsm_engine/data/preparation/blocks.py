"""From sources to blocks of rows: small enough to hold, cut alike whoever works on them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path

from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.records import is_lines
from dsm_engine.data.sources.rows import Row, line_rows
from dsm_engine.errors import DsmError

BLOCK_BYTES = 4 << 20
_VERIFIED_SHARE = 16  # blocks whose programs are run take longer, and are so many times smaller
_MAX_ROWS = 32768
_SCAN_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A source that is open to be read."""

    path: Path
    reader: Reader
    num_bytes: int
    """As it lies on the disk."""
    limit: int | None = None
    """Only this many rows of it."""
    verified: bool = False
    """Whether its programs are run."""

    signature: tuple[int, ...] = ()
    """Of the file as it was when its checksum was taken; empty where it need not be here."""
    xxh3: str = ""

    def check_unchanged(self) -> None:
        """Raises DsmError where the file is not the one it was."""
        try:
            changed = file_signature(self.path) != self.signature
        except OSError as error:
            raise DsmError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if changed:
            raise DsmError(f"{self.path}: changed while it was read; run the command again")

    @property
    def block_bytes(self) -> int:
        return BLOCK_BYTES // _VERIFIED_SHARE if self.verified else BLOCK_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows of one source. Those of a file of plain lines are read where they are worked on."""

    number: int
    """From 0, over all sources."""
    source_idx: int
    position: int
    """How far into the file on disk its end is, in bytes: for progress."""
    begin: int = 0
    """First byte of the lines."""
    end: int = 0
    """Byte after the last."""
    rows: tuple[Row, ...] | None = None
    """Those of any other file."""


def cutting_rules() -> list[int]:
    """What decides where blocks begin and end."""
    return [BLOCK_BYTES, _VERIFIED_SHARE, _MAX_ROWS]


def cut_blocks(sources: Iterable[SourceFile]) -> Iterator[Block]:
    """The blocks of all sources, in order. Raises DsmError where a file is at fault."""
    number = 0
    for source_idx, source in enumerate(sources):
        cut = _line_blocks if _can_be_cut(source) else _row_blocks
        for block in cut(source, source_idx, number):
            yield block
            number = block.number + 1


def block_rows(block: Block, source: SourceFile) -> Iterator[Row]:
    """The rows of a block. In a file of plain lines they are numbered from the block's beginning.

    Raises DsmError where the file cannot be read.
    """
    if block.rows is not None:
        yield from block.rows
        return
    try:
        with source.path.open("rb") as file:
            file.seek(block.begin)
            yield from line_rows(file, file, source.path, begin=block.begin, end=block.end)
    except OSError as error:
        raise DsmError(f"{source.path}: cannot be read: {error.strerror or error}") from error


def file_signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is written to or replaced: size, time, inode."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def count_lines(path: Path, begin: int, end: int) -> int:
    """The line ends in the bytes [begin, end) of a file."""
    num_lines = 0
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (content := file.read(min(1 << 20, end - begin))):
            num_lines += content.count(b"\n")
            begin += len(content)
    return num_lines


def _can_be_cut(source: SourceFile) -> bool:
    return source.limit is None and is_lines(source.path, members=source.reader.members)


def _line_blocks(source: SourceFile, source_idx: int, number: int) -> Iterator[Block]:
    """Blank lines at the end may make a block without rows, and all of a blank file is one."""
    with source.path.open("rb") as file:
        begin = 0
        while begin < source.num_bytes:
            end = _line_end(file, begin + source.block_bytes, source.num_bytes)
            yield Block(number=number, source_idx=source_idx, position=end, begin=begin, end=end)
            number += 1
            begin = end


def _line_end(file: BufferedReader, position: int, num_bytes: int) -> int:
    """The byte after the first line end at or after the position, or the file's end."""
    if position >= num_bytes:
        return num_bytes
    file.seek(position)
    while content := file.read(_SCAN_BYTES):
        found = content.find(b"\n")
        if found >= 0:
            return min(position + found + 1, num_bytes)
        position += len(content)
    return num_bytes


def _row_blocks(source: SourceFile, source_idx: int, number: int) -> Iterator[Block]:
    rows = islice(source.reader.rows(source.path), source.limit)
    for first in rows:
        taken = tuple(_until_full(chain((first,), rows), source.block_bytes))
        position = min(taken[-1].position, source.num_bytes)
        yield Block(number=number, source_idx=source_idx, position=position, rows=taken)
        number += 1


def _until_full(rows: Iterator[Row], block_bytes: int) -> Iterator[Row]:
    num_bytes = 0
    for num_rows, row in enumerate(rows, start=1):
        yield row
        num_bytes += len(row.raw)
        if num_rows >= _MAX_ROWS or num_bytes >= block_bytes:
            return
