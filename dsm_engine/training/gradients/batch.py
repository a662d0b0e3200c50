"""The documents of a global batch, as the dataset has them, and micro-batches made of them."""

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
from dsm_engine.training.stream import MicroBatch


@dataclass(frozen=True, kw_only=True)
class BatchDocument:
    """A document of the batch, or the piece of it that stands there; with the padding of
    alignment, S slots."""

    tokens: Tensor  # int64 [S]
    labels: Tensor  # int64 [S], -100 where there is none

    @property
    def num_slots(self) -> int:
        """Slots it takes in a pack."""
        return len(self.tokens)

    @property
    def num_supervised(self) -> int:
        """Tokens that have a loss."""
        return int((self.labels != NO_LABEL).sum())


def read_documents(
    dataset: TokenizedDataset, packs: PackIndex, pack_indices: Sequence[int]
) -> list[list[BatchDocument]]:
    """What stands in each of these packs, one document after the other.

    Tokens and labels come from the dataset's documents and their supervised spans, not through the
    gather that training reads packs with: that is what they are compared with. Raises DsmError
    where the data is damaged.
    """
    return [
        [
            _read(dataset, piece, splits=packs.begins is not None)
            for piece in pack_pieces(packs, dataset.lengths, pack_idx)
        ]
        for pack_idx in pack_indices
    ]


def _read(dataset: TokenizedDataset, piece: PackPiece, *, splits: bool) -> BatchDocument:
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
    return BatchDocument(
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
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return MicroBatch(
        tokens=tokens[None].to(device),
        labels=labels[None].to(device),
        loss_weights=(labels != NO_LABEL).float()[None].to(device),
        position_ids=positions[None].to(device),
        packed_seq_params=packed_sequences(ends, tuple(lengths), max(lengths)),
    )
