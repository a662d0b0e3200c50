"""What one block of rows became: its documents, and what is known of them and of the other rows.

A part is a safetensors file. Its metadata has an XXH3 of everything in it, so that a part a killed
machine left half written is not taken for a whole one.
"""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.errors import DsmError

FaultKind = Literal["fault", "omitted", "overlong", "unverified", "contaminated", "unknown"]
_CHECKSUM = "xxh3"


@dataclass(kw_only=True, slots=True)
class RowFault:
    """A row that is no document of the part."""

    row_idx: int
    """In the block."""
    line: int
    byte: int | None
    kind: FaultKind
    """Which policy decides about it."""
    cause: str
    reason: str
    raw: bytes = b""
    """The row, where it may be quarantined."""


@dataclass(kw_only=True, slots=True)
class PartCounts:
    """What a part tells besides its documents."""

    block: int
    source_idx: int
    source: str
    num_rows: int
    num_lines: int
    """Line ends in the block; 0 where its rows know their lines."""
    names: list[list[str]] = field(default_factory=lambda: [[] for _ in COLUMNS])
    """The values that each column's codes stand for."""
    licences: list[str] = field(default_factory=list)
    """The values that the documents' licences stand for."""
    faults: list[RowFault] = field(default_factory=list)
    """In the order of the rows."""
    contaminated: list[RowFault] = field(default_factory=list)
    """Rows of documents in which benchmark text was found, for the quarantine."""
    phase_s: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, by the clock; they say nothing of the dataset."""


@dataclass(kw_only=True, slots=True, eq=False)
class Part:
    """Documents of one block, in order."""

    counts: PartCounts
    tokens: NDArray[Any]
    """Token ids, end to end, [num_tokens]."""
    lengths: NDArray[np.int32]
    """Tokens of each document, [num_documents]."""
    span_counts: NDArray[np.int32]
    """Supervised spans of each document, [num_documents]."""
    spans: NDArray[np.int32]
    """[num_spans, 2]"""
    ids: NDArray[np.uint8]
    """The documents' ids in UTF-8, end to end."""
    id_lengths: NDArray[np.int32]
    """Bytes of each, [num_documents]."""
    codes: NDArray[np.uint32]
    """[num_documents, columns]"""
    licences: NDArray[np.uint32]
    """[num_documents], numbers of the licences in the counts"""
    unknown: NDArray[np.int32]
    """Unknown tokens of each document, [num_documents]."""
    truncated: NDArray[np.bool_]
    """[num_documents]"""
    rows: NDArray[np.int32]
    """The row in the block that each document is of, [num_documents]."""
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What the quality steps know of each document, [num_documents, ...]."""

    @property
    def num_documents(self) -> int:
        return len(self.lengths)


_ARRAYS = tuple(f.name for f in fields(Part) if f.name not in ("counts", "extra"))
_LARGE = ("tokens", "spans", "ids")
_EMPTY: NDArray[Any] = np.empty(0, np.int32)
_EXTRA = "extra."
_COUNTS, _RAWS, _RAW_LENGTHS = "counts", "raws", "raw_lengths"


def write_part(path: Path, part: Part, *, key: str) -> None:
    """Writes the part's file under its final name, whole; `key` says of what it is a part.

    Raises DsmError where it cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(getattr(part, name)) for name in _ARRAYS}
    arrays |= {_EXTRA + name: np.ascontiguousarray(array) for name, array in part.extra.items()}
    raws = [fault.raw for fault in (*part.counts.faults, *part.counts.contaminated)]
    arrays[_RAWS] = np.frombuffer(b"".join(raws), np.uint8)
    arrays[_RAW_LENGTHS] = np.array([len(raw) for raw in raws], np.int64)
    # The counts are an array too: the header of a safetensors file is small.
    counts = orjson.dumps(asdict(part.counts), default=lambda raw: None)
    arrays[_COUNTS] = np.frombuffer(counts, np.uint8)
    metadata = {"key": key, _CHECKSUM: _checksum(key, arrays)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(save(arrays, metadata))
        temporary.replace(path)
    except OSError as error:
        raise DsmError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_part(path: Path, *, key: str, check: bool = False, tokens: bool = True) -> Part:
    """The part in a file, its largest arrays left empty where `tokens` are not asked for.

    Raises DsmError where it is damaged or of another `key`; its checksum is compared if asked.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays: dict[str, NDArray[Any]] = {
                name: file.get_tensor(name) if tokens or name not in _LARGE else _EMPTY
                for name in file.keys()  # noqa: SIM118 - no mapping
            }
        if metadata["key"] != key:
            raise DsmError(f"{path}: is a part of something else")
        if check and _checksum(key, arrays) != metadata[_CHECKSUM]:
            raise DsmError(f"{path}: is damaged, its checksum differs")
        extra = {n.removeprefix(_EXTRA): a for n, a in arrays.items() if n.startswith(_EXTRA)}
        named = {name: arrays[name] for name in _ARRAYS}
        return Part(counts=_counts(arrays), extra=extra, **named)
    except (OSError, SafetensorError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise DsmError(f"{path}: is damaged: {error}") from error


def _counts(arrays: dict[str, NDArray[Any]]) -> PartCounts:
    values = orjson.loads(arrays[_COUNTS].tobytes())
    ends = np.cumsum(arrays[_RAW_LENGTHS])
    raws = iter(np.split(arrays[_RAWS], ends[:-1]))
    for key in ("faults", "contaminated"):
        values[key] = [RowFault(**{**fault, "raw": next(raws).tobytes()}) for fault in values[key]]
    return PartCounts(**values)


def _checksum(key: str, arrays: dict[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_64(key.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data if arrays[name].size else b"")
    return digest.hexdigest()
