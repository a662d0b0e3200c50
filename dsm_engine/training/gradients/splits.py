"""One global batch, split into micro-batches and dealt to ranks in several ways."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dsm_engine.data.pack_index import PackStrategy, build_pack_index
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.gradients.batch import BatchDocument, pack_of
from dsm_engine.training.isolation.schedule import without_loss
from dsm_engine.training.stream import MicroBatch, PackStream, share_of_rank


@dataclass(frozen=True, kw_only=True)
class Split:
    """One way to split the batch."""

    name: str
    width: int
    """Tokens of a pack, over all context-parallel ranks."""
    num_micro_batches: int
    """Of each data-parallel rank."""
    own: Callable[[], Iterator[MicroBatch]]
    """This rank's share of the packs."""
    spare: Callable[[], MicroBatch]
    """Any pack, for ranks whose share is smaller than others'."""

    def micro_batches(self) -> Iterator[MicroBatch]:
        """This rank's; behind its own, up to the number of them, some without a loss."""
        num_left = self.num_micro_batches
        for batch in self.own():
            num_left -= 1
            yield batch
        for _ in range(num_left):
            yield without_loss(self.spare())


def splits_of(
    recipe: TrainRecipe,
    stream: PackStream,
    pack_indices: Sequence[int],
    documents: Sequence[Sequence[BatchDocument]],
    context: ParallelContext,
) -> list[Split]:
    """The packs as training takes them, with `documents` in each; the same in another order, dealt
    to ranks unevenly; the documents in packs by another strategy, in packs of another width, and
    each alone."""
    every = list(itertools.chain.from_iterable(documents))
    capacity, alone = recipe.data.seq_length, width_of_one(recipe, every)
    other = _another_width(recipe, alone, capacity)
    strategy: PackStrategy = "random" if recipe.data.strategy == "best_fit" else "best_fit"

    def packed(strategy: PackStrategy, width: int) -> list[list[BatchDocument]]:
        index = build_pack_index(
            [document.num_slots for document in every],
            capacity=width,
            strategy=strategy,
            seed=recipe.seed,
        )
        packs = (index.pack(pack_idx).tolist() for pack_idx in range(index.num_packs))
        return [[every[place] for place in pack] for pack in packs]

    packs = [_as_trained(stream, pack_indices, capacity, context)]
    packs.append(_in_another_order(stream, pack_indices, documents, capacity, context))
    return packs + [
        _of_documents(name, made, width, context)
        for name, made, width in (
            (f"packed by {strategy}", packed(strategy, capacity), capacity),
            (f"packs of {other:,} tokens", packed("first_fit_shuffle", other), other),
            ("documents alone, padded", [[document] for document in every], alone),
        )
    ]


def width_of_one(recipe: TrainRecipe, documents: Sequence[BatchDocument]) -> int:
    """Tokens of packs that hold one document each, whichever it is."""
    return _divisible(recipe, max(document.num_slots for document in documents))


def micro_batches_of_a_rank(num_packs: int, context: ParallelContext) -> int:
    """How many each data-parallel rank takes, so that all take as many."""
    most = -(-num_packs // context.dp_size)
    if context.vp_size > 1:  # an interleaved pipeline takes them in groups of PP
        most += -most % context.pp_size
    return most


def _another_width(recipe: TrainRecipe, alone: int, capacity: int) -> int:
    """Between that of the longest document and that of a pack; twice a pack's where there is
    nothing between."""
    between = _divisible(recipe, (alone + capacity) // 2)
    return between if between < capacity else 2 * capacity


def _divisible(recipe: TrainRecipe, num_tokens: int) -> int:
    divisor = recipe.parallel.slots_divisor
    return -(-num_tokens // divisor) * divisor


def _as_trained(
    stream: PackStream, pack_indices: Sequence[int], width: int, context: ParallelContext
) -> Split:
    return Split(
        name="packs as trained on",
        width=width,
        num_micro_batches=micro_batches_of_a_rank(len(pack_indices), context),
        own=lambda: stream.micro_batches(list(pack_indices)),
        spare=lambda: stream.micro_batch(pack_indices[0]),
    )


def _in_another_order(
    stream: PackStream,
    pack_indices: Sequence[int],
    documents: Sequence[Sequence[BatchDocument]],
    width: int,
    context: ParallelContext,
) -> Split:
    """The packs with the most supervised tokens come first and go to the first rank."""
    counts = [sum(document.num_supervised for document in pack) for pack in documents]
    places = sorted(range(len(counts)), key=lambda place: -counts[place])
    if places == sorted(places):
        places.reverse()
    # The stream deals them in turns.
    turns = sorted(range(len(places)), key=lambda turn: turn % context.dp_size)
    ordered = [0] * len(places)
    for turn, place in zip(turns, places, strict=True):
        ordered[turn] = pack_indices[place]
    return Split(
        name="packs in another order",
        width=width,
        num_micro_batches=micro_batches_of_a_rank(len(places), context),
        own=lambda: stream.micro_batches(ordered),
        spare=lambda: stream.micro_batch(pack_indices[0]),
    )


def _of_documents(
    name: str, packs: Sequence[Sequence[BatchDocument]], width: int, context: ParallelContext
) -> Split:
    def micro_batch(pack: Sequence[BatchDocument]) -> MicroBatch:
        return share_of_rank(pack_of(pack, width=width, device=context.device), context)

    mine = packs[context.dp_rank :: context.dp_size]
    return Split(
        name=name,
        width=width,
        num_micro_batches=micro_batches_of_a_rank(len(packs), context),
        own=lambda: map(micro_batch, mine),
        spare=lambda: micro_batch(packs[0]),
    )
