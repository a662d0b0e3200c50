"""A pack index in a file: one checksummed header, arrays aligned for memory mapping.

docs/formats.md has the byte table.
"""

import mmap
from pathlib import Path

import numpy as np
import xxhash

from dsm_engine import _core
from dsm_engine.data.mapped_file import map_file
from dsm_engine.data.pack_index import (
    OVERLONG_POLICIES,
    STRATEGIES,
    PackCost,
    PackIndex,
    ledger_of,
)
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file

_MAGIC = b"DSMPACKS"
_HEADER_BYTES = _core.PackFile.header_bytes
_HASHED_BYTES = _core.PackFile.hashed_bytes
_ALIGNMENT = 64


def save_pack_index(packs: PackIndex, path: Path) -> None:
    """Publishes the index at `path`, atomically. Raises DsmError where it cannot."""
    offsets, documents, begins = packs.arrays()
    parts = [offsets.data, _padding(offsets.nbytes), documents.data]
    if packs.begins is not None:
        parts += [_padding(documents.nbytes), begins.data]
    payload = xxhash.xxh3_64()
    for part in parts:
        payload.update(part)
    header = _core.PackFile()
    header.strategy = STRATEGIES.index(packs.strategy)
    header.overlong = OVERLONG_POLICIES.index(packs.overlong)
    header.cost = (packs.cost.token, packs.cost.square)
    ledger = packs.ledger
    header.ledger = (
        ledger.documents,
        ledger.tokens,
        ledger.dropped_documents,
        ledger.dropped_tokens,
        ledger.truncated_documents,
        ledger.truncated_tokens,
    )
    header.num_packs = packs.num_packs
    header.num_pieces = len(documents)
    header.capacity = packs.capacity
    header.alignment = packs.alignment
    header.seed = packs.seed
    header.epoch = packs.epoch
    header.id_bytes = documents.itemsize
    header.has_begins = packs.begins is not None
    header.lengths_xxh3 = packs.lengths_xxh3
    header.payload_xxh3 = payload.intdigest()
    header.header_xxh3 = xxhash.xxh3_64_intdigest(header.to_bytes()[:_HASHED_BYTES])
    with atomic_file(path) as file:
        file.write(header.to_bytes())
        for part in parts:
            file.write(part)


def load_pack_index(path: Path) -> PackIndex:
    """Maps the index at `path`, every checksum compared.

    Raises DsmError where it is missing, cut short, damaged or of another version.
    """
    content = map_file(path)
    header = _core.PackFile.parse(content, str(path))
    _check_checksums(path, content, header)
    _core.PackFile.check_arrays(content, str(path))
    begins = None
    if header.has_begins:
        begins = np.frombuffer(content, "<i4", header.num_packs, header.begins_begin)
    return PackIndex(
        capacity=header.capacity,
        strategy=STRATEGIES[header.strategy],
        seed=header.seed,
        epoch=header.epoch,
        alignment=header.alignment,
        overlong=OVERLONG_POLICIES[header.overlong],
        cost=PackCost(token=header.cost[0], square=header.cost[1]),
        ledger=ledger_of(header.ledger),
        lengths_xxh3=header.lengths_xxh3,
        offsets=np.frombuffer(content, "<i8", header.num_packs + 1, _HEADER_BYTES),
        documents=np.frombuffer(
            content, f"<i{header.id_bytes}", header.num_pieces, header.documents_begin
        ),
        begins=begins,
    )


def is_pack_index(path: Path) -> bool:
    """Whether a file with a pack index's first bytes stands at `path`."""
    try:
        return _begins_as_index(path)
    except (OSError, ValueError):
        return False


def refuse_other_files(path: Path) -> None:
    """Raises DsmError where something other than a pack index stands at `path`."""
    try:
        is_index = _begins_as_index(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DsmError(f"{path}: cannot be written: {reason}") from error
    if not is_index:
        raise DsmError(f"{path}: is there and is no pack index; choose another name")


def _begins_as_index(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _check_checksums(path: Path, content: mmap.mmap | bytes, header: "_core.PackFile") -> None:
    with memoryview(content) as view:
        found = xxhash.xxh3_64_intdigest(view[:_HASHED_BYTES])
        if found != header.header_xxh3:
            raise DsmError(f"{path}: its header is damaged: build the pack index again")
        found = xxhash.xxh3_64_intdigest(view[_HEADER_BYTES:])
        if found != header.payload_xxh3:
            raise DsmError(f"{path}: is damaged, its checksum differs: build the pack index again")


def _padding(num_bytes: int) -> bytes:
    """Zeros up to the next multiple of the alignment; every array begins on one."""
    return bytes(-num_bytes % _ALIGNMENT)
