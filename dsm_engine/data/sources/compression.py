"""Files as their contents, whether they are compressed or not."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from dsm_engine.errors import DsmError

BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16  # what can be looked at before it is read
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@contextmanager
def open_contents(path: Path) -> Iterator[tuple[BufferedReader, BufferedReader]]:
    """The decompressed contents, and the file on disk, whose position tells of progress.

    What the file is, its first bytes say, not its name. Raises DsmError, also out of the block,
    where it is missing, unreadable or damaged.
    """
    try:
        with _buffered(path.open("rb", buffering=0)) as on_disk:
            magic = on_disk.peek(4)[:4]
            if magic.startswith(_GZIP_MAGIC):
                yield _buffered(gzip.GzipFile(fileobj=on_disk)), on_disk
            elif magic == _ZSTD_MAGIC:
                yield _open_zstd(on_disk, path), on_disk
            else:
                yield on_disk, on_disk
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DsmError(f"{path}: cannot be read: {reason}") from error


def _open_zstd(on_disk: BufferedReader, path: Path) -> BufferedReader:
    try:
        import pyarrow
    except ImportError as error:
        raise DsmError(
            f"{path}: .zst files need pyarrow; install dsm-engine[data]: {error}"
        ) from error
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(on_disk), "zstd")
    return _buffered(stream)


def _buffered(stream: Any) -> BufferedReader:
    return BufferedReader(stream, _HEAD_BYTES)
