"""A tokenized dataset: PREFIX.bin, .idx, .spans, .attributes and PREFIX.manifest.json, which
vouches for the other four. docs/formats.md has the byte tables."""

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.checksums import CHUNK_BYTES, HashedFile
from dsm_engine.data.indexed_dataset import IndexedDataset, optimal_dtype, write_index
from dsm_engine.data.manifest import (
    DATA_SUFFIXES,
    FORMAT_VERSION,
    MANIFEST_SUFFIX,
    read_manifest,
    write_manifest,
)
from dsm_engine.data.sidecars import (
    AttributeTable,
    AttributeTableWriter,
    DocumentAttributes,
    SpanTable,
    SpanTableWriter,
)
from dsm_engine.data.verification import verify_tokenized
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, fsync_folder
from dsm_engine.targets import prepare_targets

PREFIX_HINT = "a prefix ends with the name that its files begin with, such as data/train"


class TokenizedDataset:
    """Documents as token ids, with supervised spans and attributes; mapped and read-only.

    Opening costs O(1) a file: sizes, headers and counts are checked against the manifest and
    against each other. Raises DsmError where a file is missing, cut short or of another dataset.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.manifest_path = path_of(prefix, MANIFEST_SUFFIX)
        self.manifest = read_manifest(self.manifest_path)
        self._check_sizes()
        self.indexed = IndexedDataset(prefix)
        self.span_table = SpanTable(path_of(prefix, ".spans"))
        self.attribute_table = AttributeTable(path_of(prefix, ".attributes"))
        self._check_counts()

    @property
    def num_documents(self) -> int:
        return self.indexed.num_documents

    @property
    def num_tokens(self) -> int:
        return self.manifest["tokens"]

    @property
    def num_supervised(self) -> int:
        """Tokens that are some position's label."""
        return self.manifest["supervised_tokens"]

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.manifest["vocab_size"]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, [num_documents]."""
        return self.indexed.lengths

    def document(self, document_idx: int) -> NDArray[Any]:
        """The document's token ids, [length]: a read-only view that keeps the mapping alive.

        Raises DsmError where there is no such document, or an id is outside the vocabulary.
        """
        ids = self.indexed.document(document_idx)
        outside = (ids < 0) | (ids >= self.vocab_size)
        if outside.any():
            raise DsmError(
                f"{path_of(self.prefix, '.bin')}: is damaged: document {document_idx} has the token"
                f" id {ids[outside.argmax()]}, expected 0 to {self.vocab_size - 1}"
            )
        return ids

    def spans(self, document_idx: int) -> NDArray[np.int32]:
        """The document's supervised spans, [num_spans, 2]: token positions [begin, end)."""
        return self.span_table.document(document_idx)

    def attributes(self, document_idx: int) -> DocumentAttributes:
        """Where the document comes from."""
        return self.attribute_table.document(document_idx)

    def check_tables(self) -> None:
        """Checks every entry of .idx, .attributes and .spans, the tokens apart; raises DsmError
        that says where the first damage is."""
        self.indexed.check_tables()
        self.attribute_table.check()
        self.span_table.check(self.lengths)

    def verify(self) -> None:
        """Reads every byte; raises DsmError that says which part of which file is damaged first."""
        verify_tokenized(self)

    def path_of(self, suffix: str) -> Path:
        """The dataset's file with this suffix."""
        return path_of(self.prefix, suffix)

    def _check_sizes(self) -> None:
        for suffix in DATA_SUFFIXES:
            path = path_of(self.prefix, suffix)
            expected = self.manifest["files"][suffix]["bytes"]
            try:
                found = path.stat().st_size
            except OSError as error:
                raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
            if found != expected:
                raise DsmError(
                    f"{path}: expected {expected} bytes from {self.manifest_path.name},"
                    f" found {found}"
                )

    def _check_counts(self) -> None:
        expected, found = self.manifest["dtype"], self.indexed.dtype.name
        if found != expected:
            raise DsmError(f"{self.manifest_path}: expected tokens of {expected}, found {found}")
        tokens = self.manifest["files"][".bin"]["bytes"] // self.indexed.dtype.itemsize
        found = {
            ".idx documents": (self.indexed.num_documents, "documents"),
            ".spans documents": (self.span_table.num_documents, "documents"),
            ".attributes documents": (self.attribute_table.num_documents, "documents"),
            ".bin tokens": (tokens, "tokens"),
            ".spans supervised tokens": (self.span_table.num_supervised, "supervised_tokens"),
        }
        for what, (count, key) in found.items():
            if count != self.manifest[key]:
                raise DsmError(
                    f"{self.manifest_path}: expected {self.manifest[key]} {key},"
                    f" found {count} {what}"
                )


class TokenizedDatasetWriter:
    """Writes a tokenized dataset, streaming: tokens, spans and ids never pile up in memory.

    A context manager. `finish` publishes the dataset, its manifest last; leaving the block without
    it leaves nothing, and an older dataset at the prefix stays. What a writer of this prefix that
    was killed left behind (`.NAME.PID.tmp`) is removed when the next one begins. Raises DsmError at
    the beginning where a file cannot be published.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        if vocab_size < 1:
            raise DsmError(f"{prefix}: a vocabulary has at least one token, found {vocab_size}")
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.dtype = optimal_dtype(vocab_size)
        self.num_tokens = 0
        self._lengths = array("i")
        self._stack = ExitStack()
        self._files: dict[str, HashedFile] = {}

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    @property
    def max_document_tokens(self) -> int:
        return max(self._lengths, default=0)

    def __enter__(self) -> "TokenizedDatasetWriter":
        folder = self.prefix.parent
        self._check_targets()
        with ExitStack() as stack:
            self._tokens = self._open(stack, ".bin")
            self._spans = SpanTableWriter(folder)
            stack.callback(self._spans.close)
            self._attributes = AttributeTableWriter(folder)
            stack.callback(self._attributes.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = error or _UnfinishedError()
        self._stack.__exit__(type(error), error, traceback)

    def add(
        self,
        ids: Sequence[int] | NDArray[Any],
        spans: Sequence[tuple[int, int]],
        *,
        id: str,
        source: str,
        language: str,
        format: str,
        topic: str,
    ) -> None:
        """Adds one document; `spans` are its supervised [begin, end), in order, not overlapping.

        Raises DsmError where it has no tokens, a token id is outside [0, vocab_size), a span is
        outside the document, or an attribute is no Unicode text.
        """
        tokens = self._checked_tokens(ids, id)
        try:
            self._spans.add(spans, len(tokens))
            self._attributes.add(id, (source, language, format, topic))
        except ValueError as error:
            raise DsmError(f"{self.prefix}: document {id!r}: {error}") from error
        self._tokens.write(tokens.astype(self.dtype).data)
        self._lengths.append(len(tokens))
        self.num_tokens += len(tokens)

    def add_documents(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[np.int32],
        *,
        spans: NDArray[np.int32],
        span_counts: NDArray[np.int32],
        ids: NDArray[np.uint8],
        id_lengths: NDArray[np.int32],
        names: Sequence[Sequence[str]],
        codes: NDArray[np.uint32],
    ) -> None:
        """Adds many documents at once, end to end; see the sidecars' writers for the arrays.

        Raises DsmError as `add` does.
        """
        if not len(lengths):
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise DsmError(
                f"{self.prefix}: token ids must be 0 to {self.vocab_size - 1},"
                f" found {low} to {high}"
            )
        assert lengths.min() > 0, "a document has tokens"
        assert len(tokens) == lengths.sum(dtype=np.int64), "the tokens are those of the documents"
        try:
            self._spans.add_documents(spans, span_counts, lengths)
            self._attributes.add_documents(ids, id_lengths, names, codes)
        except ValueError as error:
            first = self.num_documents
            last = first + len(lengths) - 1
            raise DsmError(f"{self.prefix}: documents {first} to {last}: {error}") from error
        self._tokens.write(tokens.astype(self.dtype, copy=False).data)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        self.num_tokens += len(tokens)

    def finish(self, **manifest_fields: Any) -> None:
        """Publishes the dataset; the fields go to the manifest as they are (JSON values)."""
        manifest = {
            "format_version": FORMAT_VERSION,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "supervised_tokens": self._spans.num_supervised,
            "vocab_size": self.vocab_size,
            "dtype": self.dtype.name,
            "chunk_bytes": CHUNK_BYTES,
        }
        taken = manifest.keys() | {"files", "manifest_xxh3"}
        assert not taken & manifest_fields.keys(), f"{taken & manifest_fields.keys()} are computed"

        write_index(self._open(self._stack, ".idx"), self._lengths, self.dtype)
        self._spans.write_to(self._open(self._stack, ".spans"))
        self._attributes.write_to(self._open(self._stack, ".attributes"))
        manifest["files"] = {suffix: file.describe() for suffix, file in self._files.items()}
        self._check_targets()  # all of them, before one is published
        # From here on no manifest may speak of files that are being replaced.
        manifest_path = path_of(self.prefix, MANIFEST_SUFFIX)
        manifest_path.unlink(missing_ok=True)
        fsync_folder(manifest_path.parent)
        self._stack.close()
        write_manifest(manifest_path, manifest | manifest_fields)

    def _check_targets(self) -> None:
        prepare_targets(*(path_of(self.prefix, s) for s in (*DATA_SUFFIXES, MANIFEST_SUFFIX)))

    def _open(self, stack: ExitStack, suffix: str) -> HashedFile:
        file = stack.enter_context(atomic_file(path_of(self.prefix, suffix)))
        self._files[suffix] = HashedFile(file, chunk_bytes=CHUNK_BYTES)
        return self._files[suffix]

    def _checked_tokens(self, ids: Sequence[int] | NDArray[Any], id: str) -> NDArray[Any]:
        where = f"{self.prefix}: document {id!r}"
        if isinstance(ids, np.ndarray):
            tokens = ids
        else:
            try:  # an array of C ints is several times faster than np.asarray of a list
                tokens = np.frombuffer(array("q", ids), np.int64)
            except (OverflowError, TypeError) as error:
                raise DsmError(f"{where}: token ids are integers: {error}") from error
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DsmError(f"{where}: token ids are one row of integers")
        if not 0 < len(tokens) < 1 << 31:
            raise DsmError(f"{where}: expected 1 to 2^31 - 1 tokens, found {len(tokens)}")
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= self.vocab_size:
            raise DsmError(
                f"{where}: token ids must be 0 to {self.vocab_size - 1}, found {low} to {high}"
            )
        return tokens


def path_of(prefix: Path, suffix: str) -> Path:
    """PREFIX with the suffix appended, whatever dots the prefix has.

    Raises DsmError where the prefix has no name to append to.
    """
    if not names_files(prefix):
        raise DsmError(f"{str(prefix)!r}: {PREFIX_HINT}")
    return prefix.with_name(prefix.name + suffix)


def names_files(prefix: Path) -> bool:
    """Whether files can be named after the prefix."""
    return prefix.name not in ("", "..") and "\0" not in str(prefix)


class _UnfinishedError(Exception):
    """Thrown into the open files so that they do not become final."""
