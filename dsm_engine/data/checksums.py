"""XXH3 of whole files and of their chunks: written while a file is written, compared by `verify`.

Chunks say where damage is, and are read by several threads (xxhash releases the GIL).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash

from dsm_engine.errors import DsmError

CHUNK_BYTES = 1 << 22
_NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedChunk:
    """A part of a file whose checksum is another."""

    begin: int
    """First byte."""
    end: int
    """Byte after the last."""
    expected: str
    """XXH3, 16 hexadecimal digits."""
    found: str


class HashedFile:
    """A file that knows the size and the XXH3 of what was written to it, whole and by chunk."""

    def __init__(self, file: IO[bytes], *, chunk_bytes: int) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._whole = xxhash.xxh3_64()
        self._chunk = xxhash.xxh3_64()
        self._chunks: list[str] = []
        self._bytes = 0

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self._whole.update(data)
        content = memoryview(data).cast("B") if len(data) else b""
        while len(content):
            part = content[: self._chunk_bytes - self._bytes % self._chunk_bytes]
            self._chunk.update(part)
            self._bytes += len(part)
            content = content[len(part) :]
            if self._bytes % self._chunk_bytes == 0:
                self._chunks.append(self._chunk.hexdigest())
                self._chunk.reset()
        return written

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        tail = [self._chunk.hexdigest()] if self._bytes % self._chunk_bytes else []
        return {
            "bytes": self._bytes,
            "xxh3": self._whole.hexdigest(),
            "chunks": [*self._chunks, *tail],
        }


def find_damaged_chunk(
    path: Path, *, num_bytes: int, chunk_bytes: int, chunks: Sequence[str]
) -> DamagedChunk | None:
    """The first chunk of the file whose XXH3 is not the one given; reads up to it.

    Raises DsmError where the file cannot be read.
    """
    with _opened(path) as descriptor, ThreadPoolExecutor(_NUM_THREADS) as threads:

        def checksum(chunk_idx: int) -> str:
            return _chunk_xxh3(descriptor, chunk_idx * chunk_bytes, chunk_bytes)

        checksums = threads.map(checksum, range(len(chunks)))
        for chunk_idx, (expected, found) in enumerate(zip(chunks, checksums, strict=True)):
            if found != expected:
                threads.shutdown(cancel_futures=True)  # what comes after it need not be read
                begin = chunk_idx * chunk_bytes
                end = min(begin + chunk_bytes, num_bytes)
                return DamagedChunk(begin=begin, end=end, expected=expected, found=found)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error


def _chunk_xxh3(descriptor: int, begin: int, num_bytes: int) -> str:
    digest = xxhash.xxh3_64()
    end = begin + num_bytes
    while part := os.pread(descriptor, end - begin, begin):
        digest.update(part)
        begin += len(part)
    return digest.hexdigest()
