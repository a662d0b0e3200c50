"""What programs did when they were run, kept from run to run in one SQLite file."""

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder, user_cache_folder
from dsm_engine.sandbox import ProgramResult

_FORMAT = 1
_BUSY_TIMEOUT_S = 60.0
_MAX_RECORD_BYTES = 16 << 10
_MAX_QUERY_KEYS = 500


def default_cache_path() -> Path:
    """`dsm_engine/programs.sqlite` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    return user_cache_folder() / "programs.sqlite"


class ProgramCache:
    """Results by the SHA-256 of a program and the conditions it ran under.

    Several processes may use one file at a time, each through a ProgramCache of its own; a process
    that is killed leaves the file whole. What depends on the machine's speed or ended by a signal
    is not kept, nor results of more than 16 KiB after compression. Raises DsmError where the file
    is none of a cache's, damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path = path
        with self._errors():
            self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
            self._open()

    def get(self, conditions: str, programs: Sequence[str]) -> dict[str, ProgramResult]:
        """The results that are known, by program."""
        by_key = {_key(conditions, program): program for program in programs}
        keys = list(by_key)
        found: dict[str, ProgramResult] = {}
        with self._errors():
            for start in range(0, len(keys), _MAX_QUERY_KEYS):
                chunk = keys[start : start + _MAX_QUERY_KEYS]
                marks = ",".join("?" * len(chunk))
                rows = self._database.execute(
                    f"SELECT key, record FROM results WHERE key IN ({marks})", chunk
                )
                found |= {by_key[key]: _unpacked(record) for key, record in rows}
        return found

    def put(self, conditions: str, results: Mapping[str, ProgramResult]) -> None:
        """Keeps results, by program, in one transaction."""
        records = [
            (_key(conditions, program), record)
            for program, result in results.items()
            if result.is_repeatable and len(record := _packed(result)) <= _MAX_RECORD_BYTES
        ]
        if not records:
            return
        with self._errors(), self._database:
            self._database.executemany("INSERT OR IGNORE INTO results VALUES (?, ?)", records)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        # One process makes the table; the others wait for it at BEGIN.
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if found == 0 and tables == (0,):
                self._database.execute(
                    "CREATE TABLE results (key BLOB PRIMARY KEY, record BLOB NOT NULL)"
                    " WITHOUT ROWID"
                )
                self._database.execute(f"PRAGMA user_version = {_FORMAT}")
            elif found != _FORMAT:
                raise sqlite3.DatabaseError("was written by another version")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, zlib.error, ValueError, TypeError) as error:
            raise DsmError(
                f"{self._path}: the cache of program results cannot be used: {error}; "
                "delete it, and programs run again"
            ) from error


def _key(conditions: str, program: str) -> bytes:
    text = f"{conditions}\0{program}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _packed(result: ProgramResult) -> bytes:
    return zlib.compress(orjson.dumps([result.stdout, result.error]))


def _unpacked(record: bytes) -> ProgramResult:
    stdout, error = orjson.loads(zlib.decompress(record))
    return ProgramResult(stdout=stdout, error=error, timed_out=False)
