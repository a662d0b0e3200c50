"""A file's bytes, memory-mapped."""

import mmap
from pathlib import Path

from dsm_engine.errors import DsmError


def map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of the file, read-only; NumPy views of them keep the mapping alive.

    An empty file, which cannot be mapped, is b"". Raises DsmError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
