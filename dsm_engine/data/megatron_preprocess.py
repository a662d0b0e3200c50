"""What Megatron-LM's tools/preprocess_data.py does, byte for byte: JSON lines to .bin and .idx.

A document is a line. Its text under a key is one sequence, or several where it is a list of texts.
A sequence without ids is left out; a document without ids has no sequences and no EOD. Lines are
read and parsed while earlier ones are encoded on other threads, and written in their order.
"""

import glob
import json
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from dsm_engine.data.example import ExampleFault
from dsm_engine.data.indexed_dataset import write_index
from dsm_engine.data.megatron_tokenizers import MegatronTokenizer, load_megatron_tokenizer
from dsm_engine.data.sources.line_blocks import LineBlock, read_line_blocks
from dsm_engine.data.sources.rows import MAX_LINE_BYTES, json_fault, json_kind
from dsm_engine.data.tokenizers.early_load import EarlyLoad
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file
from dsm_engine.targets import prepare_targets

_SUFFIXES = (".bin", ".idx")
_BYTES_AHEAD = 48 << 20  # what is parsed while a tokenizer loads
_FAST_PARSE_ERRORS = (orjson.JSONDecodeError, KeyError, TypeError, IndexError)

Progress = Callable[[int, int], None]
"""Called with the documents written so far and the bytes of the lines read for them."""


@dataclass(frozen=True, kw_only=True)
class MegatronRecipe:
    """One run, under the names of Megatron's flags."""

    input: str
    """A file, or, where there is none of that name, a pattern of files, read in sorted order."""
    output_prefix: str
    tokenizer_type: str
    tokenizer_model: Path
    json_keys: Sequence[str] = ("text",)
    append_eod: bool = False
    workers: int = 1
    """Threads that encode. The files do not depend on them."""
    special_tokens: bool = True
    """Whether a Hugging Face tokenizer adds its BOS and the like to every text."""
    parse_control_tokens: bool = False
    """Whether control strings in text become control ids, as in Megatron."""
    on_error: Literal["error", "skip"] = "error"


@dataclass(frozen=True, kw_only=True)
class MegatronReport:
    """What a run wrote."""

    prefixes: list[Path]
    """Of the .bin and .idx of each key."""
    num_documents: int
    num_tokens: int
    """Of all keys."""
    skipped: Counter[str]
    """Lines that were left out, by cause."""
    num_with_controls: int
    """Texts that hold control strings."""
    num_with_losses: int
    """Texts that hold characters which the tokenizer's model drops, as it does in Megatron."""
    encoder: str
    note: str | None
    """What the user should know of the tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """The texts under one key, of the documents of a block."""

    texts: list[str]
    counts: list[int] | None
    """Texts of each document; None where each has one."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the documents of a block under one key become."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    """Of the sequences that have ids."""
    num_sequences: NDArray[np.int64]
    """Of each document."""
    num_with_controls: int
    num_with_losses: int


def preprocess_for_megatron(
    recipe: MegatronRecipe, *, progress: Progress | None = None, early: EarlyLoad | None = None
) -> MegatronReport:
    """Writes PREFIX_KEY_document.bin and .idx for every key; none of them unless all is well.

    `early` is a load of a Hugging Face tokenizer's file that goes on already.
    Raises DsmError, with `file:line:byte` where a line is at fault and `on_error` is `error`.
    """
    _check(recipe)
    paths = _input_files(recipe.input)
    prefixes = [Path(f"{recipe.output_prefix}_{key}_document") for key in recipe.json_keys]
    targets = [_with_suffix(prefix, suffix) for prefix in prefixes for suffix in _SUFFIXES]
    _refuse_overwriting(paths, targets)
    prepare_targets(*targets)
    tokenizer = load_megatron_tokenizer(
        recipe.tokenizer_type,
        recipe.tokenizer_model,
        special_tokens=recipe.special_tokens,
        parse_controls=recipe.parse_control_tokens,
        early=early,
    )
    with ExitStack() as stack:
        # Published in reverse: every .bin before the first .idx.
        indexes = [stack.enter_context(atomic_file(_with_suffix(p, ".idx"))) for p in prefixes]
        files = [stack.enter_context(atomic_file(_with_suffix(p, ".bin"))) for p in prefixes]
        writers = [
            _Writer(index, data, tokenizer.dtype)
            for index, data in zip(indexes, files, strict=True)
        ]
        run = _Run(recipe, tokenizer, writers)
        run.read(paths, progress or (lambda documents, num_bytes: None))
        if run.num_documents == 0:
            raise DsmError(f"{recipe.input}: no document to write")
        for writer in writers:
            writer.finish()
        for prefix in prefixes:
            _with_suffix(prefix, ".idx").unlink(missing_ok=True)
    return MegatronReport(
        prefixes=prefixes,
        num_documents=run.num_documents,
        num_tokens=sum(writer.num_tokens for writer in writers),
        skipped=run.skipped,
        num_with_controls=run.num_with_controls,
        num_with_losses=run.num_with_losses,
        encoder=tokenizer.encoder,
        note=tokenizer.note,
    )


class _Run:
    """One pass over the files: this thread reads, parses and writes; others encode."""

    def __init__(
        self, recipe: MegatronRecipe, tokenizer: MegatronTokenizer, writers: Sequence["_Writer"]
    ) -> None:
        self.num_documents = 0
        self.skipped: Counter[str] = Counter()
        self.num_with_controls = 0
        self.num_with_losses = 0
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._writers = writers

    def read(self, paths: Sequence[Path], progress: Progress) -> None:
        num_bytes = pending_bytes = 0
        pending: deque[tuple[Future[list[_Encoded]], int]] = deque()

        def write_next() -> None:
            nonlocal num_bytes, pending_bytes
            future, block_bytes = pending.popleft()
            self._write(future.result())
            num_bytes += block_bytes
            pending_bytes -= block_bytes
            progress(self.num_documents, num_bytes)

        with ThreadPoolExecutor(1) as encoder:
            try:
                for block in chain.from_iterable(map(read_line_blocks, paths)):
                    columns = self._parse(block)
                    holding = [self._tokenizer.find_controls(column.texts) for column in columns]
                    future = encoder.submit(self._encode, columns, holding)
                    pending.append((future, block.num_bytes))
                    pending_bytes += block.num_bytes
                    while pending and (pending_bytes > _BYTES_AHEAD or pending[0][0].done()):
                        write_next()
                while pending:
                    write_next()
            except BaseException:
                encoder.shutdown(wait=False, cancel_futures=True)
                raise

    def _write(self, encoded: Sequence[_Encoded]) -> None:
        for writer, one in zip(self._writers, encoded, strict=True):
            writer.add(one)
            self.num_with_controls += one.num_with_controls
            self.num_with_losses += one.num_with_losses
        self.num_documents += len(encoded[0].num_sequences)

    def _parse(self, block: LineBlock) -> list[_Column]:
        """The texts of a block's documents, by key."""
        keys = self._recipe.json_keys
        try:
            records = [orjson.loads(line) for line in block.lines if line]
            columns = [[record[key] for record in records] for key in keys]
        except _FAST_PARSE_ERRORS:
            return self._parse_carefully(block)
        if any(type(text) is not str for texts in columns for text in texts):
            return self._parse_carefully(block)
        if max(map(len, block.lines)) > MAX_LINE_BYTES:
            return self._parse_carefully(block)
        return [_Column(texts=texts, counts=None) for texts in columns]

    def _parse_carefully(self, block: LineBlock) -> list[_Column]:
        columns = [_Column(texts=[], counts=[]) for _ in self._recipe.json_keys]
        for line_idx, line in enumerate(block.lines):
            if not line.strip():
                continue
            try:
                record = _parse_line(line)
                document = [_texts(record, key) for key in self._recipe.json_keys]
            except ExampleFault as fault:
                self._reject(block, line_idx, fault)
                continue
            for column, texts in zip(columns, document, strict=True):
                assert column.counts is not None
                column.texts.extend(texts)
                column.counts.append(len(texts))
        return columns

    def _reject(self, block: LineBlock, line_idx: int, fault: ExampleFault) -> None:
        if self._recipe.on_error == "error":
            raise DsmError(
                f"{block.place(line_idx)}: {fault}; --on-error skip goes on without such lines"
            )
        self.skipped[fault.cause] += 1

    def _encode(
        self, columns: Sequence[_Column], holding: Sequence[Sequence[int]]
    ) -> list[_Encoded]:
        eod = self._tokenizer.eod if self._recipe.append_eod else None
        encoded = []
        for column, with_controls in zip(columns, holding, strict=True):
            ids, offsets = self._tokenizer.encode(
                column.texts, with_controls, threads=self._recipe.workers
            )
            counts = np.ones(len(column.texts), np.int64)
            if column.counts is not None:
                counts = np.array(column.counts, np.int64)
            framed = _framed(ids, np.diff(offsets), counts, self._tokenizer, eod)
            encoded.append(
                _Encoded(
                    *framed,
                    num_with_controls=len(with_controls),
                    num_with_losses=self._tokenizer.count_losses(column.texts),
                )
            )
        return encoded


@dataclass(slots=True)
class _Writer:
    """The two files of a key."""

    index: IO[bytes]
    data: IO[bytes]
    dtype: np.dtype[Any]
    num_tokens: int = 0
    _lengths: array = field(init=False, default_factory=lambda: array("i"))
    _num_sequences: array = field(init=False, default_factory=lambda: array("i"))

    def add(self, encoded: _Encoded) -> None:
        self.data.write(encoded.ids.data)
        self._lengths.frombytes(encoded.lengths.astype(np.int32).tobytes())
        self._num_sequences.frombytes(encoded.num_sequences.astype(np.int32).tobytes())
        self.num_tokens += len(encoded.ids)

    def finish(self) -> None:
        """Everything is on the disk after this, under names of its own."""
        ends = np.cumsum(np.frombuffer(self._num_sequences, np.int32), dtype=np.int64)
        lengths = np.frombuffer(self._lengths, np.int32)
        write_index(self.index, lengths, self.dtype, document_ends=ends)
        for file in (self.data, self.index):
            file.flush()
            os.fsync(file.fileno())


def _framed(
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    counts: NDArray[np.int64],
    tokenizer: MegatronTokenizer,
    eod: int | None,
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Puts prefix and suffix around the ids of every text, and EOD after every document.

    `lengths` are ids of each text, `counts` texts of each document. Gives the ids, the lengths of
    the sequences that have ids, and their number in each document.
    """
    prefix, suffix = tokenizer.prefix, tokenizer.suffix
    lengths = lengths + len(prefix) + len(suffix)
    kept = np.flatnonzero(lengths)
    document_of = np.repeat(np.arange(len(counts)), counts)
    num_sequences = np.bincount(document_of[kept], minlength=len(counts))
    has_eod = np.zeros(len(lengths), np.int64)
    if eod is not None:
        has_eod[kept[np.cumsum(num_sequences)[num_sequences > 0] - 1]] = 1
    lengths += has_eod
    ends = np.cumsum(lengths)
    before_eod = ends - has_eod
    inserted = [(ends - lengths + place, token) for place, token in enumerate(prefix)]
    inserted += [
        (before_eod - place, token) for place, token in enumerate(reversed(suffix), start=1)
    ]
    if eod is not None:
        inserted.append((before_eod[has_eod > 0], eod))
    return _inserted(ids, inserted, tokenizer.dtype), lengths[kept], num_sequences


def _inserted(
    ids: NDArray[np.int32], tokens: Sequence[tuple[NDArray[np.int64], int]], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The ids with tokens among them, each at some positions of the outcome."""
    if not tokens:
        return ids.astype(dtype, copy=False)
    out = np.empty(len(ids) + sum(len(positions) for positions, _ in tokens), dtype)
    is_text = np.ones(len(out), bool)
    for positions, token in tokens:
        out[positions] = token
        is_text[positions] = False
    out[is_text] = ids
    return out


def _parse_line(line: bytes) -> Any:
    """The JSON value of a line, NaN and infinities included. Raises ExampleFault."""
    if len(line) > MAX_LINE_BYTES:
        raise ExampleFault("line_too_long", f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(line.decode())
        except (ValueError, RecursionError):
            raise json_fault(line, error) from error


def _texts(record: Any, key: str) -> list[str]:
    """The texts under a key. Raises ExampleFault."""
    if not isinstance(record, dict):
        raise ExampleFault("not_an_object", f"is not a JSON object but {json_kind(record)}")
    if key not in record:
        raise ExampleFault("missing_key", f"has no {key!r}")
    value = record[key]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ExampleFault("not_text", f"{key!r} is not text but {json_kind(value)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ExampleFault("lone_surrogate", f"{key!r} holds half a character") from error
    return texts


def _check(recipe: MegatronRecipe) -> None:
    if recipe.workers < 1:
        raise DsmError(f"--workers {recipe.workers}: at least one is needed")
    for key, num in Counter(recipe.json_keys).items():
        if num > 1:
            raise DsmError(f"--json-keys: {key!r} stands {num} times")
        if "/" in key or "\0" in key:
            raise DsmError(f"--json-keys: {key!r} cannot be a part of a file's name")


def _input_files(pattern: str) -> list[Path]:
    if os.path.exists(pattern):  # noqa: PTH110  # a NUL in the name is no error here
        return [Path(pattern)]
    files = sorted(Path(name) for name in glob.glob(pattern))  # noqa: PTH207  # as Megatron
    if not files:
        raise DsmError(f"{pattern}: no such file")
    return files


def _refuse_overwriting(inputs: Sequence[Path], targets: Sequence[Path]) -> None:
    read = {os.path.realpath(path) for path in inputs}
    for target in targets:
        if os.path.realpath(target) in read:
            raise DsmError(f"{target}: is read and would be overwritten: give another prefix")


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
