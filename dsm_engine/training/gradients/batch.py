"""The documents of a global batch, as the dataset has them, and micro-batches made of them."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsm_engine.data.inspection import PackPiece, pack_pieces
from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.packed_batch import NO_LABEL
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.training.config import LossWeighting
from dsm_engine.training.stream import MicroBatch


@dataclass(frozen=True, kw_only=True)
class BatchDocument:
    """A document of the batch, or the piece of it that stands there; with the padding of
    alignment, S slots."""

    tokens: Tensor  # int64 [S]
    labels: Tensor  # int64 [S], -100 where there is none
    weights: Tensor  # fp32 [S], of the loss; above 0 where there is a label
    divisor: int
    """Its part of what the loss of the step is divided by."""

    @property
    def num_slots(self) -> int:
        """Slots it takes in a pack."""
        return len(self.tokens)

    @property
    def num_supervised(self) -> int:
        """Tokens that have a loss."""
        return int((self.labels != NO_LABEL).sum())


def read_documents(
    dataset: TokenizedDataset,
    packs: PackIndex,
    pack_indices: Sequence[int],
    weighting: LossWeighting = "token",
) -> list[list[BatchDocument]]:
    """What stands in each of these packs, those of one step, one document after the other.

    Tokens, labels and weights come from the dataset's documents and their supervised spans, not
    through the gather and the weights that training reads packs with: that is what they are
    compared with. Raises DsmError where the data is damaged.
    """
    pieces: list[list[_Piece]] = []
    for place, pack_idx in enumerate(pack_indices):
        times = pack_indices[:place].count(pack_idx)  # a pack that comes again is another one
        pieces.append(
            [
                _read(dataset, piece, times, splits=packs.begins is not None)
                for piece in pack_pieces(packs, dataset.lengths, pack_idx)
            ]
        )
    every = list(itertools.chain.from_iterable(pieces))
    of_examples: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
    for piece in every:
        of_examples[piece.example].append(piece)
    return [
        [_weighted(piece, of_examples[piece.example], weighting) for piece in pack]
        for pack in pieces
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    example: tuple[int, int]
    """The document of the dataset, and how often its pack came before."""
    tokens: Tensor
    labels: Tensor

    @property
    def num_supervised(self) -> int:
        return int((self.labels != NO_LABEL).sum())


def _weighted(
    piece: _Piece, of_example: Sequence[_Piece], weighting: LossWeighting
) -> BatchDocument:
    """The piece with its weights (training/weighting.py has them by weighting)."""
    alike = {"token": [], "document": [piece], "example": of_example}[weighting]
    divisor, weight = piece.num_supervised, 1.0
    if weighting != "token":
        first = next((each for each in alike if each.num_supervised), None)
        divisor = int(first is piece)
        weight = 1.0 / max(sum(each.num_supervised for each in alike), 1)
    return BatchDocument(
        tokens=piece.tokens,
        labels=piece.labels,
        weights=(piece.labels != NO_LABEL).double().mul(weight).float(),
        divisor=divisor,
    )


def _read(dataset: TokenizedDataset, piece: PackPiece, times: int, *, splits: bool) -> _Piece:
    ids = dataset.document(piece.document_idx).astype(np.int64)
    is_target = np.zeros(len(ids) + 1, bool)
    for begin, end in dataset.spans(piece.document_idx).tolist():
        is_target[begin:end] = True
    here = slice(piece.begin, piece.begin + piece.num_tokens)
    following = slice(here.start + 1, here.stop + 1)
    labels = np.where(is_target, np.append(ids, NO_LABEL), NO_LABEL)[following]
    if not splits:  # else the label of the last token is known, wherever it stands
        labels[-1] = NO_LABEL
    padding = (0, piece.slots - piece.num_tokens)
    return _Piece(
        example=(piece.document_idx, times),
        tokens=torch.from_numpy(np.pad(ids[here], padding)),
        labels=torch.from_numpy(np.pad(labels, padding, constant_values=NO_LABEL)),
    )


def pack_of(documents: Sequence[BatchDocument], *, width: int, device: torch.device) -> MicroBatch:
    """A whole pack of these documents; what is missing to the width is tail padding."""
    lengths = [document.num_slots for document in documents]
    padding = width - sum(lengths)
    assert padding >= 0, (lengths, width)
    if padding:
        lengths.append(padding)
    tail = torch.zeros(padding, dtype=torch.int64)
    tokens = torch.cat([*(document.tokens for document in documents), tail])
    labels = torch.cat([*(document.labels for document in documents), tail + NO_LABEL])
    weights = torch.cat([*(document.weights for document in documents), tail.float()])
    divisor = torch.tensor(sum(document.divisor for document in documents), dtype=torch.int)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return MicroBatch(
        tokens=tokens[None].to(device),
        labels=labels[None].to(device),
        loss_weights=weights[None].to(device),
        position_ids=positions[None].to(device),
        packed_seq_params=packed_sequences(ends, tuple(lengths), max(lengths)),
        divisor=divisor.to(device),
    )
