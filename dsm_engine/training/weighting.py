"""Loss weights: what counts alike in the loss of a step.

The loss of a step is the sum of weight * loss over its supervised tokens, divided by an integer:

    token      weight 1                                 the supervised tokens
    document   weight 1 / supervised tokens of the      the documents of packs that have some;
               document                                 a piece that `concat_split` cut is one
    example    weight 1 / supervised tokens that the    the examples that have some; pieces of one
               example has in the step                  example in a step are one

Weights and divisor follow from the packs of the step, not from who computes which of them, so any
split into ranks and micro-batches gives the same loss and gradient. Weights are fp32, each rounded
once. A pack that a step holds twice (a set smaller than a step) holds its examples twice.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.packed_batch import PackedBatch, PackReader
from dsm_engine.training.config import LossWeighting


@dataclass(frozen=True, kw_only=True)
class PackWeights:
    """Of one pack of a step."""

    weights: NDArray[np.float32]
    """[T], above 0 where there is a label, else 0."""
    divisor: int
    """This pack's part of what the loss of the step is divided by."""


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """A document of a pack whose example has supervised tokens in other packs of the step."""

    num_supervised: int
    """Of the example, in the step."""
    counts_here: bool
    """Whether it is this pack that counts the example."""


class StepWeights:
    """The weights of the packs of a step, which may be read in any order, on any rank."""

    def __init__(
        self, weighting: LossWeighting, reader: PackReader, pack_indices: Sequence[int]
    ) -> None:
        self._weighting: LossWeighting = weighting
        self._shared: dict[int, dict[int, _Shared]] = {}
        if weighting == "example" and reader.packs.begins is not None:
            self._shared = _shared_examples(reader, pack_indices)

    def of_pack(self, place: int, batch: PackedBatch) -> PackWeights:
        """Those of the pack at a place of the step's, counted from 0, which `batch` holds."""
        if self._weighting == "token":
            return PackWeights(weights=batch.loss_weights, divisor=batch.num_supervised)
        counts = _supervised_by_document(batch)
        divisor = int(np.count_nonzero(counts))
        for document, shared in self._shared.get(place, {}).items():
            divisor -= counts[document] > 0 and not shared.counts_here
            counts[document] = shared.num_supervised
        of_tokens = counts[batch.document_ids]
        supervised = batch.loss_weights > 0
        weights = np.divide(1.0, of_tokens, out=np.zeros(len(of_tokens)), where=supervised)
        return PackWeights(weights=weights.astype(np.float32), divisor=int(divisor))


def _supervised_by_document(batch: PackedBatch) -> NDArray[np.int64]:
    """Labels of each document of a pack, the padding behind them included, [documents]."""
    supervised = batch.document_ids[batch.loss_weights > 0]
    return np.bincount(supervised, minlength=batch.num_documents)


def _shared_examples(
    reader: PackReader, pack_indices: Sequence[int]
) -> dict[int, dict[int, _Shared]]:
    """Examples in several packs of a step: by place of the pack, by document of the pack.

    `concat_split` cuts the first and the last document of a pack, no other.
    """
    counts: dict[int, NDArray[np.int64]] = {}
    shared: dict[int, dict[int, _Shared]] = defaultdict(dict)
    for pieces in _cut_examples(reader.packs, pack_indices):
        found = []
        for place, document in pieces:
            if place not in counts:
                counts[place] = _supervised_by_document(reader.read(pack_indices[place]))
            found.append(int(counts[place][document]))
        counting = next((i for i, number in enumerate(found) if number), 0)
        for i, (place, document) in enumerate(pieces):
            shared[place][document] = _Shared(num_supervised=sum(found), counts_here=i == counting)
    return shared


def _cut_examples(packs: PackIndex, pack_indices: Sequence[int]) -> list[list[tuple[int, int]]]:
    """For each example with several pieces in the step, (place, document of the pack) of each."""
    times: dict[int, int] = defaultdict(int)  # a pack that comes again holds examples of its own
    pieces: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for place, pack_idx in enumerate(pack_indices):
        documents = packs.pack(pack_idx)
        for document in {0, len(documents) - 1}:
            pieces[int(documents[document]), times[pack_idx]].append((place, document))
        times[pack_idx] += 1
    return [places for places in pieces.values() if len(places) > 1]
