"""Which documents stand in which pack, and in which order the packs are trained on.

A pack index is a pure function of (lengths, capacity, strategy, seed, epoch): milliseconds in C++,
the same bytes on every machine. docs/formats.md has the byte table of the file.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from dsm_engine import _core
from dsm_engine.data.mapped_file import map_file
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file

PackStrategy = Literal["random", "best_fit"]

_MAGIC = b"DSMPACKS"
_VERSION = 1
_STRATEGIES: dict[PackStrategy, int] = {"random": 0, "best_fit": 1}
_ALIGNMENT = 64
_MAX_CAPACITY = 1 << 24
# magic, version, strategy, packs, documents, capacity, seed, epoch, bytes a document id, zero,
# xxh3 of the lengths, xxh3 of the bytes after the header; then xxh3 of all these
_HEADER = struct.Struct("<8sIIQQQQQIIQQ")
_HEADER_BYTES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class PackStatistics:
    """How well the packs are filled."""

    num_packs: int
    num_documents: int
    fill: float
    """Tokens of documents as a share of all token slots."""
    documents_per_pack_mean: float
    documents_per_pack_max: int
    fill_histogram: tuple[int, ...]
    """Packs by fill, in ten bins: [0, 0.1), [0.1, 0.2), ... [0.9, 1]."""
    padding_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackIndex:
    """Packs as CSR: pack p holds documents[offsets[p] : offsets[p + 1]], whole documents only."""

    capacity: int
    """Tokens of a pack."""
    strategy: PackStrategy
    seed: int
    epoch: int
    lengths_xxh3: int
    """Fingerprint of the document lengths the index was built from."""
    offsets: NDArray[np.int64]
    """[num_packs + 1]"""
    documents: NDArray[Any]
    """[num_documents], int32 or int64"""

    @property
    def num_packs(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_documents(self) -> int:
        return len(self.documents)

    def pack(self, pack_idx: int) -> NDArray[Any]:
        """The documents of one pack, a view. Raises DsmError where there is no such pack."""
        if not 0 <= pack_idx < self.num_packs:
            raise DsmError(f"the pack index has {self.num_packs} packs, asked for pack {pack_idx}")
        return self.documents[self.offsets[pack_idx] : self.offsets[pack_idx + 1]]

    def max_documents(self) -> int:
        """Documents of the fullest pack, 0 where there is none."""
        return int(np.diff(self.offsets).max(initial=0))

    def matches(self, lengths: NDArray[np.int32]) -> bool:
        """Whether the index was built from these document lengths."""
        return len(lengths) == self.num_documents and lengths_xxh3(lengths) == self.lengths_xxh3

    def content_xxh3(self) -> int:
        """Fingerprint of which documents stand in which pack, in which order."""
        digest = xxhash.xxh3_64()
        digest.update(np.ascontiguousarray(self.offsets, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self.documents, dtype="<i8").data)
        return digest.intdigest()

    def statistics(self, lengths: NDArray[np.int32]) -> PackStatistics:
        """Fill and documents a pack, `lengths` being those the index was built from."""
        if self.num_packs == 0:
            return PackStatistics(
                num_packs=0,
                num_documents=0,
                fill=0.0,
                documents_per_pack_mean=0.0,
                documents_per_pack_max=0,
                fill_histogram=(0,) * 10,
                padding_tokens=0,
            )
        tokens = np.add.reduceat(lengths[self.documents].astype(np.int64), self.offsets[:-1])
        bins = np.minimum(tokens * 10 // self.capacity, 9)
        slots = self.num_packs * self.capacity
        total = int(tokens.sum())
        return PackStatistics(
            num_packs=self.num_packs,
            num_documents=self.num_documents,
            fill=total / slots,
            documents_per_pack_mean=self.num_documents / self.num_packs,
            documents_per_pack_max=self.max_documents(),
            fill_histogram=tuple(np.bincount(bins, minlength=10).tolist()),
            padding_tokens=slots - total,
        )

    def save(self, path: Path) -> None:
        """Publishes the index at `path`, atomically. Raises DsmError where it cannot."""
        parts = (self.offsets.data, bytes(_padding(self.offsets.nbytes)), self.documents.data)
        payload = xxhash.xxh3_64()
        for part in parts:
            payload.update(part)
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            _STRATEGIES[self.strategy],
            self.num_packs,
            self.num_documents,
            self.capacity,
            self.seed,
            self.epoch,
            self.documents.itemsize,
            0,
            self.lengths_xxh3,
            payload.intdigest(),
        )
        header += struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
        with atomic_file(path) as file:
            file.write(header.ljust(_HEADER_BYTES, b"\0"))
            for part in parts:
                file.write(part)

    @classmethod
    def load(cls, path: Path) -> "PackIndex":
        """Maps the index at `path`. Raises DsmError where it is missing, cut short or damaged."""
        content = map_file(path)
        header = _parse_header(path, content)
        offsets_end = _HEADER_BYTES + 8 * (header.num_packs + 1)
        documents_begin = offsets_end + _padding(offsets_end)
        index = cls(
            capacity=header.capacity,
            strategy=header.strategy,
            seed=header.seed,
            epoch=header.epoch,
            lengths_xxh3=header.lengths_xxh3,
            offsets=np.frombuffer(content, "<i8", header.num_packs + 1, _HEADER_BYTES),
            documents=np.frombuffer(
                content, f"<i{header.id_bytes}", header.num_documents, documents_begin
            ),
        )
        _check_offsets(path, index)
        return index


def refuse_other_files(path: Path) -> None:
    """Raises DsmError where something other than a pack index stands at `path`."""
    try:
        with path.open("rb") as file:
            is_index = file.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DsmError(f"{path}: cannot be written: {reason}") from error
    if not is_index:
        raise DsmError(f"{path}: is there and is no pack index; choose another name")


class PackOrder:
    """The order of the packs, stateless: position p is in epoch p // num_packs.

    Every epoch is a permutation of its own; any rank of any layout asks for any position in O(1).
    """

    def __init__(self, num_packs: int, seed: int) -> None:
        self.num_packs = num_packs
        self.seed = _check_word("seed", seed)
        self._core = _core.PackOrder(num_packs, seed)

    def pack_at(self, position: int) -> int:
        """The pack at `position` >= 0. Raises DsmError below 0."""
        return self._core.pack_at(position)


def build_pack_index(
    lengths: ArrayLike, *, capacity: int, strategy: PackStrategy, seed: int, epoch: int = 0
) -> PackIndex:
    """Packs documents of these lengths into packs of `capacity` tokens, never splitting one.

    `random` lays a seeded permutation end to end and closes a pack when the next document does not
    fit, as the paper does; `best_fit` is exact best-fit-decreasing, packs in seeded random order.
    Raises DsmError where a document is empty or longer than the capacity, or a value out of range.
    """
    if strategy not in get_args(PackStrategy):
        raise DsmError(f"unknown packing strategy {strategy!r} (known: best_fit, random)")
    array = _as_lengths(lengths)
    _check_word("seed", seed)
    _check_word("epoch", epoch)
    offsets, documents = _core.build_packs(array, capacity, strategy, seed, epoch)
    offsets.flags.writeable = False
    documents.flags.writeable = False
    return PackIndex(
        capacity=capacity,
        strategy=strategy,
        seed=seed,
        epoch=epoch,
        lengths_xxh3=lengths_xxh3(array),
        offsets=offsets,
        documents=documents,
    )


def lengths_xxh3(lengths: NDArray[np.int32]) -> int:
    """XXH3 of the lengths as little-endian int32: tells one dataset's lengths from another's."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(lengths, dtype="<i4").data)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    strategy: PackStrategy
    num_packs: int
    num_documents: int
    capacity: int
    seed: int
    epoch: int
    id_bytes: int
    lengths_xxh3: int


def _parse_header(path: Path, content: Any) -> _Header:
    """The header, once magic, version, both checksums and the size equation hold."""
    if len(content) < _HEADER_BYTES or content[: len(_MAGIC)] != _MAGIC:
        raise DsmError(f"{path}: is no pack index: expected {_MAGIC.decode()} and a header")
    fields = content[: _HEADER.size]
    _, version, strategy, packs, documents, capacity, seed, epoch, id_bytes, _, lengths, payload = (
        _HEADER.unpack(fields)
    )
    if version != _VERSION:
        raise DsmError(f"{path}: expected pack index version {_VERSION}, found {version}")
    checksum = struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))
    if content[_HEADER.size : _HEADER_BYTES] != checksum.ljust(_HEADER_BYTES - _HEADER.size, b"\0"):
        raise DsmError(f"{path}: its header is damaged: build the pack index again")
    names: dict[int, PackStrategy] = {code: name for name, code in _STRATEGIES.items()}
    if strategy not in names or id_bytes not in (4, 8) or not 1 <= capacity <= _MAX_CAPACITY:
        raise DsmError(
            f"{path}: expected a known strategy, document ids of 4 or 8 bytes and a capacity of at"
            f" most {_MAX_CAPACITY}, found {strategy}, {id_bytes} and {capacity}"
        )
    offsets_end = _HEADER_BYTES + 8 * (packs + 1)
    expected = offsets_end + _padding(offsets_end) + id_bytes * documents
    if len(content) != expected:
        raise DsmError(f"{path}: expected {expected} bytes, found {len(content)}")
    with memoryview(content) as view:
        found = xxhash.xxh3_64_intdigest(view[_HEADER_BYTES:])
    if found != payload:
        raise DsmError(f"{path}: is damaged, its checksum differs: build the pack index again")
    return _Header(
        strategy=names[strategy],
        num_packs=packs,
        num_documents=documents,
        capacity=capacity,
        seed=seed,
        epoch=epoch,
        id_bytes=id_bytes,
        lengths_xxh3=lengths,
    )


def _check_offsets(path: Path, index: PackIndex) -> None:
    offsets = index.offsets
    rising = offsets[0] == 0 and bool((np.diff(offsets) > 0).all())
    if not rising or offsets[-1] != index.num_documents:
        raise DsmError(
            f"{path}: expected pack offsets that rise from 0 to {index.num_documents},"
            f" found {offsets[0]} to {offsets[-1]}"
        )


def _as_lengths(lengths: ArrayLike | Sequence[int]) -> NDArray[np.int32]:
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DsmError(
            f"document lengths are one row of integers, found {array.dtype} {array.shape}"
        )
    if array.size and not 0 <= array.min() <= array.max() <= np.iinfo(np.int32).max:
        raise DsmError(
            "document lengths are 0 to 2^31 - 1 tokens,"
            f" found some from {array.min()} to {array.max()}"
        )
    return np.require(array, dtype=np.int32, requirements=["C", "A"])


def _check_word(name: str, value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise DsmError(f"{name} must be 0 to 2^64 - 1, found {value}")
    return value


def _padding(num_bytes: int) -> int:
    """Zero bytes up to the next multiple of the alignment; the header is one such multiple."""
    return -num_bytes % _ALIGNMENT
