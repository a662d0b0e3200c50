"""What stands beside the tokens of each document: supervised spans, and where it comes from.

PREFIX.spans holds the spans as CSR; PREFIX.attributes holds ids and dictionary-coded columns.
docs/formats.md has the byte tables.
"""

import shutil
import struct
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.indexed_dataset import BinaryWriter
from dsm_engine.data.mapped_file import map_file
from dsm_engine.errors import DsmError

COLUMNS = ("source", "language", "format", "topic")

_VERSION = 1
_SPANS_MAGIC = b"DSMSPANS"
_SPANS_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, zero, documents, spans, supervised
_SPANS_HEADER_BYTES = 64
_ATTRIBUTES_MAGIC = b"DSMATTRS"
# magic, version, columns, documents, strings of each column, bytes of strings, bytes of ids
_ATTRIBUTES_HEADER = struct.Struct("<8sIIQ4QQQ")
_ATTRIBUTES_HEADER_BYTES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentAttributes:
    """Where a document comes from."""

    id: str
    source: str
    language: str
    format: str
    topic: str


class SpanTable:
    """The supervised spans of every document, mapped; raises DsmError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = map_file(path)
        fields = _unpack_header(
            path, content, _SPANS_HEADER, _SPANS_HEADER_BYTES, _SPANS_MAGIC, "span table"
        )
        self.num_documents: int = fields[1]
        self.num_spans: int = fields[2]
        self.num_supervised: int = fields[3]
        spans_begin = _SPANS_HEADER_BYTES + 8 * (self.num_documents + 1)
        _check_size(path, content, spans_begin + 8 * self.num_spans)
        self.offsets: NDArray[np.int64] = np.frombuffer(
            content, "<i8", self.num_documents + 1, _SPANS_HEADER_BYTES
        )
        spans = np.frombuffer(content, "<i4", 2 * self.num_spans, spans_begin)
        self.spans: NDArray[np.int32] = spans.reshape(-1, 2)

    def document(self, document_idx: int) -> NDArray[np.int32]:
        """The document's spans, [num_spans, 2]: token positions [begin, end), a view."""
        first, last = _slice_of(self.path, self.offsets, document_idx, self.num_spans)
        return self.spans[first:last]


class SpanTableWriter:
    """Collects spans in a temporary file in `folder`; `write_to` makes the table of them."""

    def __init__(self, folder: Path) -> None:
        self.num_supervised = 0
        self._counts = array("i")
        self._spans = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    def add(self, spans: Sequence[tuple[int, int]], length: int) -> None:
        """Adds one document's spans; raises ValueError unless they rise inside [0, length]."""
        flat = array("i")
        end = 0
        for span in spans:
            begin, previous_end = span[0], end
            end = span[1]
            if not previous_end <= begin < end <= length:
                raise ValueError(
                    f"span {begin}:{end} after {previous_end} in {length} tokens: spans must rise"
                )
            # A span's first token has a label only where a token stands before it.
            self.num_supervised += end - max(begin, 1)
            flat.extend((begin, end))
        self._counts.append(len(flat) // 2)
        self._spans.write(flat)

    def write_to(self, file: BinaryWriter) -> None:
        """Writes the whole table."""
        offsets = _offsets_of(np.frombuffer(self._counts, np.int32))
        header = _SPANS_HEADER.pack(
            _SPANS_MAGIC, _VERSION, 0, len(self._counts), int(offsets[-1]), self.num_supervised
        )
        file.write(header.ljust(_SPANS_HEADER_BYTES, b"\0"))
        file.write(offsets.data)
        _copy_to(file, self._spans)

    def close(self) -> None:
        self._spans.close()


class AttributeTable:
    """The attributes of every document, mapped; raises DsmError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = map_file(path)
        fields = _unpack_header(
            path,
            content,
            _ATTRIBUTES_HEADER,
            _ATTRIBUTES_HEADER_BYTES,
            _ATTRIBUTES_MAGIC,
            "attribute table",
        )
        num_columns, self.num_documents, *num_strings, string_bytes, id_bytes = fields
        if num_columns != len(COLUMNS):
            raise DsmError(f"{path}: expected {len(COLUMNS)} columns, found {num_columns}")
        self._content = content
        n = self.num_documents
        ids_begin = _ATTRIBUTES_HEADER_BYTES
        strings_begin = ids_begin + 8 * (n + 1)
        codes_begin = strings_begin + 8 * (sum(num_strings) + 1)
        text_begin = codes_begin + 4 * len(COLUMNS) * n
        self._ids_text_begin = text_begin + string_bytes
        _check_size(path, content, self._ids_text_begin + id_bytes)
        self._id_offsets = np.frombuffer(content, "<i8", n + 1, ids_begin)
        self._id_bytes = id_bytes
        offsets = np.frombuffer(content, "<i8", sum(num_strings) + 1, strings_begin)
        codes = np.frombuffer(content, "<u4", len(COLUMNS) * n, codes_begin)
        self._codes = codes.reshape(len(COLUMNS), n)
        self._names: list[list[str]] = []
        first = 0
        for count in num_strings:
            bounds = [
                _slice_of(path, offsets, i, string_bytes) for i in range(first, first + count)
            ]
            self._names.append([self._text(text_begin + a, text_begin + b) for a, b in bounds])
            first += count

    def document(self, document_idx: int) -> DocumentAttributes:
        """The attributes of one document. Raises DsmError where there is no such document."""
        first, last = _slice_of(self.path, self._id_offsets, document_idx, self._id_bytes)
        id = self._text(self._ids_text_begin + first, self._ids_text_begin + last)
        values = {}
        for column, names, codes in zip(COLUMNS, self._names, self._codes, strict=True):
            code = int(codes[document_idx])
            if code >= len(names):
                raise DsmError(
                    f"{self.path}: is damaged: document {document_idx} has {column} number {code}"
                    f" of {len(names)}"
                )
            values[column] = names[code]
        return DocumentAttributes(id=id, **values)

    def column(self, name: str) -> tuple[list[str], NDArray[np.uint32]]:
        """The distinct values of a column and each document's number of one, [num_documents]."""
        column_idx = COLUMNS.index(name)
        return self._names[column_idx], self._codes[column_idx]

    def _text(self, begin: int, end: int) -> str:
        try:
            return self._content[begin:end].decode()
        except UnicodeDecodeError as error:
            raise DsmError(f"{self.path}: byte {begin + error.start} is not UTF-8") from error


class AttributeTableWriter:
    """Collects attributes, the ids in a temporary file in `folder`; `write_to` makes the table."""

    def __init__(self, folder: Path) -> None:
        self._codes = tuple(array("I") for _ in COLUMNS)
        self._names: tuple[dict[bytes, int], ...] = tuple({} for _ in COLUMNS)
        self._id_lengths = array("i")
        self._ids = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    def add(self, id: str, values: tuple[str, str, str, str]) -> None:
        """Adds one document's id and its values in the order of COLUMNS.

        Raises UnicodeEncodeError where one has no UTF-8 (a lone surrogate).
        """
        for codes, names, value in zip(self._codes, self._names, values, strict=True):
            codes.append(names.setdefault(value.encode(), len(names)))
        encoded = id.encode()
        self._id_lengths.append(len(encoded))
        self._ids.write(encoded)

    def write_to(self, file: BinaryWriter) -> None:
        """Writes the whole table."""
        strings = [name for names in self._names for name in names]
        string_offsets = _offsets_of(np.array([len(s) for s in strings], np.int32))
        id_offsets = _offsets_of(np.frombuffer(self._id_lengths, np.int32))
        header = _ATTRIBUTES_HEADER.pack(
            _ATTRIBUTES_MAGIC,
            _VERSION,
            len(COLUMNS),
            len(self._id_lengths),
            *(len(names) for names in self._names),
            int(string_offsets[-1]),
            int(id_offsets[-1]),
        )
        file.write(header.ljust(_ATTRIBUTES_HEADER_BYTES, b"\0"))
        file.write(id_offsets.data)
        file.write(string_offsets.data)
        for codes in self._codes:
            file.write(codes.tobytes())
        file.write(b"".join(strings))
        _copy_to(file, self._ids)

    def close(self) -> None:
        self._ids.close()


def _unpack_header(
    path: Path, content: Any, header: struct.Struct, header_bytes: int, magic: bytes, what: str
) -> tuple[int, ...]:
    """The header's fields after magic and version, which are checked."""
    if len(content) < header_bytes or content[: len(magic)] != magic:
        raise DsmError(f"{path}: is no {what}: expected {magic.decode()} and a header")
    _, version, *fields = header.unpack(content[: header.size])
    if version != _VERSION:
        raise DsmError(f"{path}: expected {what} version {_VERSION}, found {version}")
    return tuple(fields)


def _check_size(path: Path, content: Any, expected: int) -> None:
    if len(content) != expected:
        raise DsmError(f"{path}: expected {expected} bytes, found {len(content)}")


def _slice_of(path: Path, offsets: NDArray[np.int64], idx: int, limit: int) -> tuple[int, int]:
    """offsets[idx] and offsets[idx + 1], checked against each other and the limit."""
    if not 0 <= idx < len(offsets) - 1:
        raise DsmError(f"{path}: has {len(offsets) - 1} documents, asked for document {idx}")
    first, last = int(offsets[idx]), int(offsets[idx + 1])
    if not 0 <= first <= last <= limit:
        raise DsmError(f"{path}: is damaged: entry {idx} spans {first} to {last} of {limit}")
    return first, last


def _offsets_of(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=offsets[1:])
    return offsets


def _copy_to(file: BinaryWriter, source: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, file, 1 << 20)
