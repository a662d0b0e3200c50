"""fastokens tokenizers, loaded on a thread beside what else there is to do at start.

Nothing else is imported here, NumPy least of all: the sooner the thread starts, the better.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsm_engine.errors import DsmError

_THREADS_VARIABLE = "FASTOKENS_BPE_THREADS"


def load_fastokens(load: Callable[[Any], Any]) -> Any:
    """The library's tokenizer, which `load` makes from its class, without threads of its own.

    Those would not live on in a forked process, and one thread could not be asked for. Raises
    DsmError that says why there is none.
    """
    os.environ[_THREADS_VARIABLE] = "1"  # read once, at the first text
    try:
        from fastokens import Tokenizer
    except ImportError as error:
        raise DsmError("the fastokens package is not installed") from error
    try:
        return load(Tokenizer)
    except Exception as error:  # the library raises ValueError and its panics
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DsmError(f"fastokens: {reason:.200}") from error


class EarlyLoad:
    """Loads a tokenizer.json into fastokens on a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = os.getpid()
        self._version = _file_version(path)
        self._tokenizer: Any = None
        self._error: DsmError | None = None
        self._thread = threading.Thread(target=self._load)
        self._thread.start()

    def result(self) -> Any | None:
        """The tokenizer; None where this process was forked before it was there, or where the file
        is no longer the one that was there when this began.

        Raises DsmError that says why there is none.
        """
        if os.getpid() != self._process and self._tokenizer is None:
            return None
        if os.getpid() == self._process:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._tokenizer if self._version == _file_version(self._path) else None

    def _load(self) -> None:
        try:
            self._tokenizer = load_fastokens(lambda library: library.from_file(str(self._path)))
        except DsmError as error:
            self._error = error


def _file_version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
