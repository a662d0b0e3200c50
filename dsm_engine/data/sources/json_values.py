"""The records of JSON that is not one object a line: a list, or objects spread over lines.

The text is cut at brackets alone, strings aside, and never parsed as a whole: memory is bounded by
the largest record, and a record that is no JSON is one bad row.
"""

import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Literal

from dsm_engine.data.sources import rows
from dsm_engine.data.sources.compression import BUFFER_BYTES
from dsm_engine.data.sources.rows import Row
from dsm_engine.errors import DsmError

# A string that the buffer's end cuts ends without a quotation mark.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(?P<closed>")|\\?\Z)|[\[\]{}]', re.DOTALL)


class JsonValues:
    """Reads the values that stand one after another, in a list or not."""

    def __init__(self, file: BufferedReader, on_disk: BufferedReader, path: Path) -> None:
        self._file = file
        self._on_disk = on_disk
        self._path = path
        self._buffer = b""
        self._byte = 0  # of the buffer's first byte in the contents
        self._line = 1  # of the first byte that is not yet yielded
        self._done = 0  # up to where the buffer is yielded
        self._scanned = 0
        self._depth = 0
        self._begin = -1  # of the value that is open

    def read(self, *, head: bytes, within: Literal["file", "list", "member"]) -> Iterator[Row]:
        """The values after `head`, which has been read from the file already.

        In a list they end with it, and nothing follows unless it is a member of an object. Raises
        DsmError where that is not so, and where the last value is not closed.
        """
        self._buffer = head
        self._skip(len(head))
        while self._fill():
            for match in _TOKEN.finditer(self._buffer, self._scanned):
                token = match[0]
                if token in b"{[":
                    if self._depth == 0:
                        yield from self._between(match.start())
                        self._begin = match.start()
                    self._depth += 1
                elif token in b"}]" and self._depth > 0:
                    self._depth -= 1
                    if self._depth == 0:
                        yield self._row(self._begin, match.end())
                elif token == b"]" and within != "file":
                    yield from self._between(match.start())
                    self._skip(match.end())
                    if within == "list":
                        self._check_end()
                    return
                elif token.startswith(b'"') and not match["closed"]:
                    self._scanned = match.start()
                    break
                self._scanned = match.end()
            else:
                self._scanned = len(self._buffer)
        if self._depth > 0:  # one bracket too few would make all the rest a single bad row
            self._skip(self._begin)
            raise DsmError(f"{self._path}:{self._line}: the record here is not closed")
        yield from self._between(len(self._buffer))
        if within != "file":
            raise DsmError(f"{self._path}:{self._line}: the file ends within its JSON list")

    def _fill(self) -> bool:
        """Lets go of what is yielded and reads on; False at the end of the file."""
        limit = rows.MAX_LINE_BYTES
        if len(self._buffer) - self._done > limit:
            raise DsmError(f"{self._path}:{self._line}: a record of more than {limit} bytes")
        chunk = self._file.read(BUFFER_BYTES)
        self._buffer = self._buffer[self._done :] + chunk
        self._byte += self._done
        self._scanned = max(self._scanned - self._done, 0)
        self._begin -= self._done
        self._done = 0
        return bool(chunk)

    def _between(self, end: int) -> Iterator[Row]:
        """What stands between values: a comma, or something that makes a bad row."""
        text = self._buffer[self._done : end]
        if content := text.strip().strip(b",").strip():
            begin = self._done + text.index(content)
            yield self._row(begin, begin + len(content))

    def _row(self, begin: int, end: int) -> Row:
        self._skip(begin)
        row = Row(
            path=self._path,
            line=self._line,
            byte=self._byte + begin,
            raw=self._buffer[begin:end],
            position=self._on_disk.tell(),
        )
        self._skip(end)
        return row

    def _skip(self, end: int) -> None:
        self._line += self._buffer.count(b"\n", self._done, end)
        self._done = end

    def _check_end(self) -> None:
        rest = self._buffer[self._done :]
        while not rest.strip():
            if not (rest := self._file.read(BUFFER_BYTES)):
                return
        raise DsmError(f"{self._path}:{self._line}: more follows the end of the JSON list")
