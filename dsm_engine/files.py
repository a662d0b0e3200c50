"""Files reach their final name only whole: write aside, fsync, rename, fsync the folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson
import xxhash

from dsm_engine.errors import DsmError

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that becomes `path` when the block ends, and nothing when it raises.

    Raises DsmError where the folder or the file cannot be made or written.
    """
    make_folder(path.parent)
    if not path.name:
        raise DsmError(f"{path}: names no file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DsmError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    fsync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes `folder` and its parents where they are missing. Raises DsmError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DsmError(f"{folder}: the folder cannot be made: {reason}") from error


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Publishes `value` as indented JSON at `path`, atomically."""
    with atomic_file(path) as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def user_cache_folder() -> Path:
    """Where what can be made again is kept: `dsm_engine` in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "dsm_engine"


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`. Raises DsmError where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises DsmError where it is missing, unreadable or not JSON."""
    try:
        return orjson.loads(read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise DsmError(f"{path}: is not JSON: {error}") from error


def read_text(path: Path) -> str:
    """The text in `path`. Raises DsmError where it is missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DsmError(f"{path}: is not UTF-8 (byte {error.start})") from error


def file_xxh3(path: Path) -> str:
    """The 64-bit XXH3 of the file's bytes, 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
