"""Which documents stand in which pack.

A pack index is a pure function of (lengths, capacity, strategy, seed, epoch, alignment, overlong
policy, cost): milliseconds in C++, the same bytes on every machine and number of threads.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest

PackStrategy = Literal["random", "best_fit", "concat_split", "first_fit_shuffle", "balanced"]
OverlongPolicy = Literal["error", "drop", "truncate"]

# The numbers of csrc/core/pack_index.h.
STRATEGIES: tuple[PackStrategy, ...] = get_args(PackStrategy)
OVERLONG_POLICIES: tuple[OverlongPolicy, ...] = get_args(OverlongPolicy)

PackArena = _core.Arena
"""Keeps the memory of earlier packings for later ones: pass the same one to `build_pack_index`
again once the PackIndex before is gone. Worth it from tens of millions of documents on, where the
first touch of fresh memory takes longer than packing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackCost:
    """What a pack costs to train on: token * slots + square * (sum of its documents' slots^2)."""

    token: int = 52_826
    square: int = 1
    """The defaults are the floating-point operations of DeepSeekMath 7B in the ratio of its linear
    layers and head (38.95 GF a token, forward and backward) to causal attention
    (3.02 GF a token at 4,096 tokens, so 3.02 / 4,096 GF for each squared token)."""

    def __post_init__(self) -> None:
        if not (
            0 <= self.token <= 1 << 31 and 0 <= self.square <= 128 and self.token + self.square
        ):
            raise DsmError(
                "cost: a token must cost 0 to 2^31 and a squared length 0 to 128, not both 0, found"
                f" {self.token} and {self.square}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PackLedger:
    """What became of the documents: in = packed + dropped, in documents and in tokens."""

    documents: int
    """In the dataset."""
    tokens: int
    dropped_documents: int
    """Longer than the capacity, under the policy `drop`."""
    dropped_tokens: int
    truncated_documents: int
    """Longer than the capacity, under the policy `truncate`; packed without their ends."""
    truncated_tokens: int
    """Tokens cut off them."""

    @property
    def packed_tokens(self) -> int:
        """Tokens that stand in packs."""
        return self.tokens - self.dropped_tokens - self.truncated_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PackStatistics:
    """How well the packs are filled, and how even they are."""

    num_packs: int
    num_pieces: int
    """Documents in packs; each part of a document that concat_split cut counts."""
    fill: float
    """Tokens of documents as a share of all token slots."""
    documents_per_pack_mean: float
    documents_per_pack_max: int
    fill_histogram: tuple[int, ...]
    """Packs by fill, in ten bins: [0, 0.1), [0.1, 0.2), ... [0.9, 1]."""
    alignment_padding: int
    """Slots behind documents up to the alignment."""
    tail_padding: int
    """Slots behind the last document of a pack."""
    sum_squares: int
    """Over all pieces, slots squared: what block-diagonal attention costs."""
    max_squares: int
    """Of the pack with the most."""

    @property
    def padding_tokens(self) -> int:
        return self.alignment_padding + self.tail_padding


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackTotals:
    """What each pack holds."""

    tokens: NDArray[np.int64]
    """[num_packs], of documents"""
    slots: NDArray[np.int64]
    """[num_packs], tokens and the padding of alignment"""
    squares: NDArray[np.int64]
    """[num_packs], the sum of squared slots of its documents"""

    def costs(self, cost: PackCost) -> NDArray[np.int64]:
        """What each pack costs to train on, [num_packs]."""
        return cost.token * self.slots + cost.square * self.squares


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackIndex:
    """Packs as CSR: pack p holds documents[offsets[p] : offsets[p + 1]].

    A document that concat_split cut stands in several packs: the first document of pack p begins at
    its token begins[p], and the last ends where the pack is full.
    """

    capacity: int
    """Tokens of a pack."""
    strategy: PackStrategy
    seed: int
    epoch: int
    alignment: int
    """A document takes the next multiple of it in slots."""
    overlong: OverlongPolicy
    cost: PackCost
    """Of `balanced`."""
    ledger: PackLedger
    lengths_xxh3: int
    """Fingerprint of the document lengths the index was built from."""
    offsets: NDArray[np.int64]
    """[num_packs + 1]"""
    documents: NDArray[Any]
    """[num_pieces], int32 or int64"""
    begins: NDArray[np.int32] | None
    """[num_packs] of concat_split, else None."""

    @property
    def num_packs(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_documents(self) -> int:
        """Of the dataset, dropped ones included."""
        return self.ledger.documents

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
        """Fingerprint of which part of which document stands where."""
        digest = xxhash.xxh3_64()
        header = [self.capacity, self.alignment, self.documents.itemsize]
        digest.update(np.array(header, dtype="<i8").data)
        for array in self.arrays():
            digest.update(np.ascontiguousarray(array).data)
        return digest.intdigest()

    def statistics(self, lengths: ArrayLike) -> PackStatistics:
        """Fill and documents a pack, `lengths` being those the index was built from.

        Raises DsmError where they are others and the packs do not hold.
        """
        num_packs, num_pieces, max_pieces, tokens, alignment, tail, histogram, squares, most = (
            _core.pack_statistics(_as_lengths(lengths), *self.arrays(), **self.layout())
        )
        return PackStatistics(
            num_packs=num_packs,
            num_pieces=num_pieces,
            fill=tokens / (num_packs * self.capacity) if num_packs else 0.0,
            documents_per_pack_mean=num_pieces / num_packs if num_packs else 0.0,
            documents_per_pack_max=max_pieces,
            fill_histogram=tuple(histogram),
            alignment_padding=alignment,
            tail_padding=tail,
            sum_squares=squares,
            max_squares=most,
        )

    def totals(self, lengths: ArrayLike) -> PackTotals:
        """What each pack holds. Raises DsmError as `statistics` does."""
        tokens, slots, squares = _core.pack_totals(
            _as_lengths(lengths), *self.arrays(), **self.layout()
        )
        return PackTotals(tokens=tokens, slots=slots, squares=squares)

    def check_coverage(self, lengths: ArrayLike) -> None:
        """Checks that every token stands in one pack or in the ledger.

        True of every index that was built; a file may hold another that has right checksums.
        Raises DsmError where a document is missing, stands twice or is cut wrongly, or the ledger
        is wrong.
        """
        _core.check_pack_coverage(
            _as_lengths(lengths), *self.arrays(), astuple(self.ledger), **self.layout()
        )

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int32]]:
        """Offsets, documents and begins as the core takes them."""
        begins = np.empty(0, np.int32) if self.begins is None else self.begins
        return self.offsets, self.documents, begins

    def layout(self) -> dict[str, Any]:
        """What the core must know to tell which tokens of a document stand in a pack."""
        return {
            "capacity": self.capacity,
            "alignment": self.alignment,
            "truncates": self.overlong == "truncate",
        }


def build_pack_index(
    lengths: ArrayLike,
    *,
    capacity: int,
    strategy: PackStrategy,
    seed: int,
    epoch: int = 0,
    alignment: int = 1,
    overlong: OverlongPolicy = "error",
    cost: PackCost | None = None,
    threads: int = 1,
    arena: PackArena | None = None,
) -> PackIndex:
    """Packs documents of these lengths, in tokens, into packs of `capacity` tokens.

    Strategies:
    - `random` lays a seeded permutation end to end and closes a pack when the next document does
      not fit, as the paper does;
    - `concat_split` cuts the same stream exactly at the capacity, documents with it;
    - `first_fit_shuffle` puts each document of a seeded permutation into the first pack with room;
    - `best_fit` is exact best-fit-decreasing: all but the fewest packs possible;
    - `balanced` puts each document, longest first, into the pack of least `cost` that has room, so
      that packs cost about the same (see `deal_packs` for data-parallel ranks).
    The last two take documents of equal length, and order their packs, at random by the seed.

    A document takes the next multiple of `alignment` in slots (2 * CP and the like). Documents
    longer than the capacity follow `overlong` and are counted in the ledger; concat_split cuts them
    as it cuts all others. `threads` and `arena` change the time, never the result. `lengths` must
    not change meanwhile.

    Raises DsmError where a document is empty, or longer than the capacity under `error`, or a value
    is out of range.
    """
    if strategy not in STRATEGIES:
        raise DsmError(f"unknown packing strategy {strategy!r} {nearest(strategy, STRATEGIES)}")
    if overlong not in OVERLONG_POLICIES:
        raise DsmError(
            f"unknown overlong policy {overlong!r} {nearest(overlong, OVERLONG_POLICIES)}"
        )
    cost = PackCost() if cost is None else cost
    array = _as_lengths(lengths)
    for name, value in (("capacity", capacity), ("alignment", alignment), ("threads", threads)):
        if not -(1 << 31) <= value < 1 << 31:
            raise DsmError(f"{name} is out of range: {value}")
    offsets, documents, begins, ledger = _core.build_packs(
        array,
        capacity=capacity,
        strategy=STRATEGIES.index(strategy),
        seed=check_word("seed", seed),
        epoch=check_word("epoch", epoch),
        alignment=alignment,
        overlong=OVERLONG_POLICIES.index(overlong),
        cost_token=check_word("cost.token", cost.token),
        cost_square=check_word("cost.square", cost.square),
        threads=threads,
        arena=arena,
    )
    return PackIndex(
        capacity=capacity,
        strategy=strategy,
        seed=seed,
        epoch=epoch,
        alignment=alignment,
        overlong=overlong,
        cost=cost,
        ledger=ledger_of(ledger),
        lengths_xxh3=lengths_xxh3(array),
        offsets=offsets,
        documents=documents,
        begins=begins if strategy == "concat_split" else None,
    )


def deal_packs(costs: ArrayLike, ranks: int) -> NDArray[np.int64]:
    """An order of a step's packs, [packs], of which data-parallel rank r takes [r::ranks].

    Every rank gets as many packs; the packs of one micro-batch, and the sums of the ranks, cost
    about the same. `costs` are those of the step's packs. Raises DsmError unless the packs can be
    dealt evenly.
    """
    return _core.deal_packs(np.ascontiguousarray(costs, np.int64), ranks)


def lengths_xxh3(lengths: NDArray[np.int32]) -> int:
    """XXH3 of the lengths as little-endian int32: tells one dataset's lengths from another's."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(lengths, dtype="<i4").data)


def ledger_of(counts: tuple[int, ...]) -> PackLedger:
    """The ledger as the core counts it."""
    documents, tokens, dropped, dropped_tokens, truncated, truncated_tokens = counts
    return PackLedger(
        documents=documents,
        tokens=tokens,
        dropped_documents=dropped,
        dropped_tokens=dropped_tokens,
        truncated_documents=truncated,
        truncated_tokens=truncated_tokens,
    )


def check_word(name: str, value: int) -> int:
    """The value, where it fits an unsigned 64-bit word; else raises DsmError."""
    if not 0 <= value < 1 << 64:
        raise DsmError(f"{name} must be 0 to 2^64 - 1, found {value}")
    return value


def _as_lengths(lengths: ArrayLike | Sequence[int]) -> NDArray[np.int32]:
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DsmError(
            f"document lengths are one row of integers, found {array.dtype} {array.shape}"
        )
    if array.dtype == np.int32 or not array.size:  # the core looks at each of these
        return np.require(array, dtype=np.int32, requirements=["C", "A"])
    if not 0 <= array.min() <= array.max() <= np.iinfo(np.int32).max:
        raise DsmError(
            "document lengths are 0 to 2^31 - 1 tokens,"
            f" found some from {array.min()} to {array.max()}"
        )
    return np.require(array, dtype=np.int32, requirements=["C", "A"])
