"""The packs the check reads, and what it makes of them: one document changed, one alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_engine.data.inspection import pack_pieces
from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.packed_batch import NO_LABEL, PackReader
from dsm_engine.errors import DsmError
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.training.stream import MicroBatch, to_device


@dataclass(frozen=True, kw_only=True)
class PackDocument:
    """A document of a pack: its slots [start, end)."""

    name: str
    start: int
    end: int
    is_supervised: bool
    is_padding: bool


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pack as the trainer gets it, and the documents that stand in it by what was read."""

    pack_idx: int
    batch: MicroBatch
    documents: tuple[PackDocument, ...]


def choose_packs(packs: PackIndex, num_packs: int) -> list[int]:
    """Those with the most documents, at least two each; the tail padding does not count.

    Raises DsmError where every pack holds one document.
    """
    num_documents = np.diff(packs.offsets)
    fullest = np.argsort(-num_documents, kind="stable")[:num_packs]
    chosen = [int(pack_idx) for pack_idx in fullest if num_documents[pack_idx] > 1]
    if not chosen:
        raise DsmError(
            f"every pack of {packs.capacity:,} tokens holds one document: there is nothing to "
            f"isolate it from; raise data.seq_length"
        )
    return chosen


def read_pack(reader: PackReader, pack_idx: int, device: torch.device) -> Pack:
    """Reads one pack onto the device.

    Where its documents lie is worked out from the pack index and their lengths, and not taken from
    the batch: that is what is checked. Raises DsmError where the batch says something else, or the
    data is damaged there.
    """
    read = reader.read(pack_idx)
    pieces = pack_pieces(reader.packs, reader.dataset.lengths, pack_idx)
    names = [f"document {piece.document_idx}" for piece in pieces]
    ends = [0, *(piece.offset + piece.slots for piece in pieces)]
    if ends[-1] < reader.packs.capacity:
        names.append("the tail padding")
        ends.append(reader.packs.capacity)
    batch = to_device(read, device)
    _refuse_other_boundaries(batch, ends, f"pack {pack_idx}")
    documents = tuple(
        PackDocument(
            name=name,
            start=start,
            end=end,
            is_supervised=bool(read.loss_weights[start:end].any()),
            is_padding=place >= len(pieces),
        )
        for place, (name, (start, end)) in enumerate(zip(names, pairwise(ends), strict=True))
        if end > start
    )
    return Pack(pack_idx=pack_idx, batch=batch, documents=documents)


def _refuse_other_boundaries(batch: MicroBatch, ends: list[int], where: str) -> None:
    """Raises DsmError unless everything that tells the model of boundaries says these."""
    lengths = [end - start for start, end in pairwise(ends)]
    packed = batch.packed_seq_params
    expected = {
        "cu_seqlens": (packed.cu_seqlens_q.tolist(), ends),
        "lengths": (list(packed.lengths), lengths),
        "max_seqlen": ([packed.max_seqlen_q], [max(lengths)]),
        "position_ids": (
            batch.position_ids[0].tolist(),
            [position for length in lengths for position in range(length)],
        ),
    }
    for name, (found, right) in expected.items():
        if found != right:
            idx = next(
                (i for i, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]),
                min(len(found), len(right)),
            )
            raise DsmError(
                f"{where}: documents are not isolated: {name} of the batch are not those of the "
                f"pack index, from entry {idx} on ({found[idx : idx + 3]} for "
                f"{right[idx : idx + 3]})"
            )


def choose_documents(documents: Sequence[PackDocument], num_documents: int) -> list[int]:
    """Which documents are changed in turn: all where they are few, else the first, the last, those
    between at even distances, and the tail padding."""
    if len(documents) <= num_documents:
        return list(range(len(documents)))
    real = [place for place, document in enumerate(documents) if not document.is_padding]
    padding = [place for place, document in enumerate(documents) if document.is_padding]
    if num_documents <= len(padding):
        padding = []
    evenly = np.linspace(0, len(real) - 1, num_documents - len(padding)).round().astype(int)
    return [real[place] for place in evenly] + padding


def with_changed_document(pack: Pack, document: PackDocument, vocab_size: int) -> MicroBatch:
    """The pack with another id for every token of the document.

    Labels follow the tokens: wherever the next token is the document's, a label is its new id. So
    a label of another document that crosses into this one changes too, and is found.
    """
    batch, (start, end) = pack.batch, (document.start, document.end)
    generator = torch.Generator().manual_seed(start)
    shift = torch.randint(1, vocab_size, (end - start,), generator=generator)
    tokens, labels = batch.tokens.clone(), batch.labels.clone()
    tokens[0, start:end] = (tokens[0, start:end] + shift.to(tokens.device)) % vocab_size
    first = max(start, 1)
    before = labels[0, first - 1 : end - 1]
    labels[0, first - 1 : end - 1] = torch.where(before == NO_LABEL, before, tokens[0, first:end])
    return replace(batch, tokens=tokens, labels=labels)


def without_loss_of(batch: MicroBatch, document: PackDocument) -> Tensor:
    """Loss weights, fp32 [1, T], of the other documents alone."""
    weights = batch.loss_weights.clone()
    weights[0, document.start : document.end] = 0.0
    return weights


def document_alone(batch: MicroBatch, document: PackDocument, *, multiple_of: int) -> MicroBatch:
    """The document as the only one of a pack of its length.

    Sequence and context parallelism split a pack evenly over ranks (`multiple_of`): what is
    missing to that is tail padding, as in every pack.
    """
    length = document.end - document.start
    padding = -length % multiple_of
    lengths = (length, padding) if padding else (length,)

    def alone(tensor: Tensor, fill: float) -> Tensor:
        return F.pad(tensor[:, document.start : document.end], (0, padding), value=fill)

    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(batch.tokens.device, torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return MicroBatch(
        tokens=alone(batch.tokens, 0),
        labels=alone(batch.labels, NO_LABEL),
        loss_weights=alone(batch.loss_weights, 0.0),
        position_ids=positions[None].to(batch.position_ids),
        packed_seq_params=packed_sequences(cu_seqlens, lengths, max(lengths)),
    )
