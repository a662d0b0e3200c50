"""What stands beside the tokens of each document: supervised spans, and where it comes from.

PREFIX.spans holds the spans as CSR; PREFIX.attributes holds ids and dictionary-coded columns.
docs/formats.md has the byte tables.
"""

import codecs
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

from dsm_engine import _core
from dsm_engine.data.indexed_dataset import BinaryWriter
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
_TEXT_PART_BYTES = 1 << 22


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
        self._core = _core.SpanTable(path)
        self.num_documents = self._core.num_documents
        self.num_spans = self._core.num_spans
        self.num_supervised = self._core.num_supervised
        self.offsets: NDArray[np.int64] = self._core.offsets()  # [num_documents + 1]
        self.spans: NDArray[np.int32] = self._core.spans()  # [num_spans, 2]

    def document(self, document_idx: int) -> NDArray[np.int32]:
        """The document's spans, [num_spans, 2]: token positions [begin, end), a view.

        Raises DsmError where there is no such document or its spans do not rise.
        """
        return self._core.document(document_idx)

    def documents_in(self, begin: int, end: int) -> range:
        """The documents whose offsets or spans lie in the bytes [begin, end) of the file.

        Where the offsets themselves are damaged, it is what they say.
        """
        spans_begin = _SPANS_HEADER_BYTES + 8 * (self.num_documents + 1)
        covered = []
        if begin < spans_begin and end > _SPANS_HEADER_BYTES:
            first = max(begin - _SPANS_HEADER_BYTES, 0) // 8
            last = (min(end, spans_begin) - _SPANS_HEADER_BYTES - 1) // 8
            covered += [first - 1, last]  # an offset ends one document and begins the next
        if end > spans_begin:
            spans = [max(begin - spans_begin, 0) // 8, (end - 1 - spans_begin) // 8]
            covered += (np.searchsorted(self.offsets, spans, side="right") - 1).tolist()
        if not covered or not self.num_documents:
            return range(0)
        return range(max(min(covered), 0), min(max(covered), self.num_documents - 1) + 1)

    def check(self, lengths: NDArray[np.int32]) -> None:
        """Checks every span against the documents' lengths, and the count of supervised tokens.

        Raises DsmError that says where the first damage is.
        """
        self._core.check(lengths)


class SpanTableWriter:
    """Collects spans in a temporary file in `folder`; `write_to` makes the table of them."""

    def __init__(self, folder: Path) -> None:
        self.num_supervised = 0
        self._counts = array("i")
        self._spans = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    def add(self, spans: Sequence[tuple[int, int]], length: int) -> None:
        """Adds one document's spans; raises ValueError unless they rise inside [0, length]."""
        flat = np.array(spans, np.int64).reshape(-1, 2)
        self.add_documents(flat, np.array([len(flat)], np.int32), np.array([length], np.int32))

    def add_documents(
        self,
        spans: NDArray[np.integer[Any]],
        counts: NDArray[np.int32],
        lengths: NDArray[np.int32],
    ) -> None:
        """Adds the spans of many documents, [num_spans, 2], so many of each, [num_documents].

        Raises ValueError unless those of a document rise inside [0, length].
        """
        begins, ends = spans[:, 0], spans[:, 1]
        document = np.repeat(np.arange(len(counts)), counts)
        after = np.zeros(len(spans), np.int64)  # where the one before in the document ends
        same = document[1:] == document[:-1]
        after[1:][same] = ends[:-1][same]
        wrong = (begins < after) | (begins >= ends) | (ends > lengths[document])
        if wrong.any():
            idx = int(wrong.argmax())
            raise ValueError(
                f"span {begins[idx]}:{ends[idx]} after {after[idx]} in {lengths[document[idx]]}"
                " tokens: spans must rise"
            )
        # A document's first token has no label, as no token stands before it.
        self.num_supervised += int((ends - np.maximum(begins, 1)).sum())
        self._counts.frombytes(counts.astype(np.int32).tobytes())
        self._spans.write(spans.astype(np.int32).tobytes())

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
        self._core = _core.AttributeTable(path)
        self.num_documents = self._core.num_documents
        self._names = [
            [self._decoded(value, f"a value of {name}") for value in self._core.values(column_idx)]
            for column_idx, name in enumerate(COLUMNS)
        ]
        self._codes = [self._core.codes(column_idx) for column_idx in range(len(COLUMNS))]

    def document(self, document_idx: int) -> DocumentAttributes:
        """The attributes of one document.

        Raises DsmError where there is no such document or it is damaged there.
        """
        id, *codes = self._core.document(document_idx)
        source, language, format, topic = (
            names[code] for names, code in zip(self._names, codes, strict=True)
        )
        return DocumentAttributes(
            id=self._decoded(id, f"the id of document {document_idx}"),
            source=source,
            language=language,
            format=format,
            topic=topic,
        )

    def column(self, name: str) -> tuple[list[str], NDArray[np.uint32]]:
        """The distinct values of a column and each document's number of one, [num_documents]."""
        column_idx = COLUMNS.index(name)
        return self._names[column_idx], self._codes[column_idx]

    def check(self) -> None:
        """Checks every id and number; raises DsmError that says where the first damage is."""
        self._core.check()
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = self._core.id_text().data
        for begin in range(0, len(text), _TEXT_PART_BYTES):
            end = min(begin + _TEXT_PART_BYTES, len(text))
            try:
                decoder.decode(text[begin:end], final=end == len(text))
            except UnicodeDecodeError as error:
                raise DsmError(
                    f"{self.path}: is damaged: the ids are not UTF-8 near byte"
                    f" {begin + error.start} of their text: {error.reason}"
                ) from error

    def _decoded(self, text: bytes, what: str) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise DsmError(
                f"{self.path}: is damaged: {what} is not UTF-8: {error.reason}"
            ) from error


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
        encoded = id.encode()
        self.add_documents(
            np.frombuffer(encoded, np.uint8),
            np.array([len(encoded)], np.int32),
            [[value] for value in values],
            np.zeros((1, len(COLUMNS)), np.uint32),
        )

    def add_documents(
        self,
        ids: NDArray[np.uint8],
        id_lengths: NDArray[np.int32],
        names: Sequence[Sequence[str]],
        codes: NDArray[np.uint32],
    ) -> None:
        """Adds many documents: their ids in UTF-8, end to end, with the bytes of each, and the
        number of their value in each column's `names`, [num_documents, columns].

        Raises UnicodeEncodeError where a name has no UTF-8 (a lone surrogate).
        """
        for column_idx, (values, known) in enumerate(zip(names, self._names, strict=True)):
            used = np.unique(codes[:, column_idx])
            mapped = np.zeros(len(values), np.uint32)
            for code in map(int, used):
                mapped[code] = known.setdefault(values[code].encode(), len(known))
            self._codes[column_idx].frombytes(mapped[codes[:, column_idx]].tobytes())
        self._id_lengths.frombytes(id_lengths.astype(np.int32).tobytes())
        self._ids.write(ids.data)

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


def _offsets_of(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, dtype=np.int64, out=offsets[1:])
    return offsets


def _copy_to(file: BinaryWriter, source: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, file, 1 << 20)
