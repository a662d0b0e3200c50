"""The file a pack index is kept in: what is saved is loaded, and nothing damaged is."""

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dsm_engine.data.pack_file import load_pack_index, save_pack_index
from dsm_engine.data.pack_index import STRATEGIES, PackCost, build_pack_index
from dsm_engine.errors import DsmError


def _lengths(n: int) -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(5.6, 0.7, n), 16, 4096).astype(np.int32)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [0, 1, 500])
def test_a_saved_index_is_loaded_whole(tmp_path: Path, strategy, n: int) -> None:
    lengths = _lengths(n)
    packs = build_pack_index(
        lengths,
        capacity=2048,
        strategy=strategy,
        seed=(1 << 64) - 1,
        epoch=9,
        alignment=8,
        overlong="truncate",
        cost=PackCost(token=7, square=2),
    )
    save_pack_index(packs, tmp_path / "packs")
    loaded = load_pack_index(tmp_path / "packs")
    for ours, theirs in zip(loaded.arrays(), packs.arrays(), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    for name in (
        *("capacity", "strategy", "seed", "epoch", "alignment", "overlong", "cost", "ledger"),
        *("lengths_xxh3", "num_packs"),
    ):
        assert getattr(loaded, name) == getattr(packs, name)
    assert loaded.content_xxh3() == packs.content_xxh3()
    assert loaded.matches(lengths)
    assert loaded.offsets.ctypes.data % 64 == 0
    assert n == 0 or loaded.documents.ctypes.data % 64 == 0


@pytest.mark.parametrize("strategy", ["random", "concat_split"])
def test_every_truncation_and_flip_of_the_file_is_rejected(tmp_path: Path, strategy) -> None:
    packs = build_pack_index(_lengths(20), capacity=4096, strategy=strategy, seed=0)
    path = tmp_path / "packs"
    save_pack_index(packs, path)
    whole = path.read_bytes()
    flips = [
        whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        for i in range(len(whole))
        for bit in range(8)
    ]
    for content in [*(whole[:length] for length in range(len(whole))), *flips, whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(DsmError, match="packs: "):
            load_pack_index(path)


def _forged(whole: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    """The file with fields changed and the checksums made to agree."""
    content = bytearray(whole)
    for offset, kind, value in changes:
        struct.pack_into(kind, content, offset, value)
    struct.pack_into("<Q", content, 144, xxhash.xxh3_64_intdigest(bytes(content[192:])))
    struct.pack_into("<Q", content, 152, xxhash.xxh3_64_intdigest(bytes(content[:152])))
    return bytes(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(8, "<I", 1)], "expected pack index version 2, found 1: build"),
        ([(12, "<I", 7)], "expected a known strategy .* found 7, 0 and 4"),
        ([(68, "<I", 3)], "expected a known strategy .* found 0, 3 and 4"),
        ([(128, "<I", 2)], "expected a known strategy .* found 0, 0 and 2"),
        ([(132, "<I", 1)], "expected a known strategy"),
        ([(16, "<Q", 1 << 61)], r"expected more than 2\^64 bytes"),
        ([(16, "<Q", 1 << 63)], r"expected counts below 2\^63"),
        ([(24, "<Q", 1 << 62)], r"expected more than 2\^64 bytes"),
        ([(24, "<Q", 3)], "expected 268 bytes, found 264"),
        ([(40, "<Q", 1 << 40)], "expected a capacity of at most 16777216"),
        ([(64, "<I", 3)], "multiple of the alignment, found 10 and 3"),
        ([(64, "<I", 0)], "multiple of the alignment, found 10 and 0"),
        ([(160, "<Q", 1)], "bytes behind it"),
        ([(192, "<q", 1)], "offsets that rise from 0 to 2, found 1 to 2"),
        ([(200, "<q", 1)], "offsets that rise from 0 to 2, found 0 to 1"),
        ([(256, "<i", 2)], "expected documents 0 to 1, found 2 at piece 0"),
        ([(260, "<i", -1)], "expected documents 0 to 1, found -1 at piece 1"),
    ],
)
def test_a_forged_file_is_rejected(tmp_path: Path, changes, message: str) -> None:
    path = tmp_path / "packs"
    save_pack_index(build_pack_index([3, 4], capacity=10, strategy="random", seed=0), path)
    whole = path.read_bytes()
    assert _forged(whole, []) == whole
    path.write_bytes(_forged(whole, changes))
    with pytest.raises(DsmError, match=rf"packs: .*{message}"):
        load_pack_index(path)


@pytest.mark.parametrize("begin", [-1, 3])
def test_forged_begins_are_rejected(tmp_path: Path, begin: int) -> None:
    path = tmp_path / "packs"
    packs = build_pack_index([9, 9], capacity=10, strategy="concat_split", seed=0, alignment=2)
    save_pack_index(packs, path)
    path.write_bytes(_forged(path.read_bytes(), [(320, "<i", begin)]))
    with pytest.raises(DsmError, match=f"pack 0 begins at token {begin} of its first document"):
        load_pack_index(path)


def test_packs_without_documents_are_rejected(tmp_path: Path) -> None:
    packs = build_pack_index([3, 4, 5], capacity=5, strategy="random", seed=0)
    for offsets in ([0, 2, 1, 3], [0, 1, 2, 4], [1, 2, 3, 3], [0, 1, 1, 3]):
        forged = dataclasses.replace(packs, offsets=np.array(offsets, np.int64))
        save_pack_index(forged, tmp_path / "packs")
        with pytest.raises(DsmError, match="pack offsets that rise from 0 to 3"):
            load_pack_index(tmp_path / "packs")


def test_a_missing_or_empty_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DsmError, match="packs: cannot be read: No such file"):
        load_pack_index(tmp_path / "packs")
    (tmp_path / "packs").write_bytes(b"")
    with pytest.raises(DsmError, match="packs: is no pack index"):
        load_pack_index(tmp_path / "packs")
