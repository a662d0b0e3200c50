"""Many rendered examples to token ids at once: one call of the tokenizer, then arrays only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.segments import Segment
from dsm_engine.data.templates import Template
from dsm_engine.data.tokenizers import Tokenizer, known_control_id

_BEGINNING, _CONTINUATION, _CONTROL = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenizedDocuments:
    """Documents end to end, with their supervised spans as CSR."""

    tokens: NDArray[np.int32]
    """[num_tokens]"""
    lengths: NDArray[np.int32]
    """[num_documents]"""
    span_counts: NDArray[np.int32]
    """[num_documents]"""
    spans: NDArray[np.int32]
    """Token positions in the document, [num_spans, 2]"""


def tokenize(
    tokenizer: Tokenizer, template: Template, documents: Sequence[Sequence[Segment]]
) -> TokenizedDocuments:
    """The ids of each document, BOS and EOS included, each segment encoded by itself."""
    begins_with = [tokenizer.bos_id] if template.adds_bos and tokenizer.bos_id is not None else []
    ends_with = [tokenizer.eos_id] if template.adds_eos else []
    texts: tuple[list[str], list[str]] = ([], [])
    kinds, supervised, control_ids, num_segments = bytearray(), bytearray(), [], []
    after_control = _BEGINNING if tokenizer.begins_after_control else _CONTINUATION
    for segments in documents:
        before = len(kinds)
        if begins_with:
            kinds.append(_CONTROL)
            supervised.append(0)
            control_ids += begins_with
        kind = _BEGINNING
        for segment in segments:
            if segment.control:
                kinds.append(_CONTROL)
                control_ids.append(known_control_id(tokenizer, segment.text))
                kind = after_control
            else:
                kinds.append(kind)
                texts[kind].append(segment.text)
                kind = _CONTINUATION
            supervised.append(segment.supervised)
        if ends_with:
            kinds.append(_CONTROL)
            supervised.append(1)
            control_ids += ends_with
        num_segments.append(len(kinds) - before)
    return _join(
        tokenizer,
        texts,
        np.frombuffer(kinds, np.uint8),
        np.frombuffer(supervised, np.bool_),
        np.array(control_ids, np.int32),
        np.array(num_segments, np.int64),
    )


def without_tokens(num_documents: int) -> TokenizedDocuments:
    """Documents that are only to be counted."""
    return TokenizedDocuments(
        tokens=np.zeros(0, np.int32),
        lengths=np.zeros(num_documents, np.int32),
        span_counts=np.zeros(num_documents, np.int32),
        spans=np.zeros((0, 2), np.int32),
    )


def _join(
    tokenizer: Tokenizer,
    texts: tuple[list[str], list[str]],
    kinds: NDArray[np.uint8],
    supervised: NDArray[np.bool_],
    control_ids: NDArray[np.int32],
    num_segments: NDArray[np.int64],
) -> TokenizedDocuments:
    counts = np.ones(len(kinds), np.int64)
    ids: list[NDArray[Any]] = []
    for kind in (_BEGINNING, _CONTINUATION):
        found, offsets = tokenizer.encode_flat(texts[kind], continuation=kind == _CONTINUATION)
        counts[kinds == kind] = np.diff(offsets)
        ids.append(found)
    ids.append(control_ids)
    kind_of_token = np.repeat(kinds, counts)
    tokens = np.empty(len(kind_of_token), np.int32)
    for kind, found in enumerate(ids):
        tokens[kind_of_token == kind] = found
    ends = np.cumsum(counts)
    last_segment = np.cumsum(num_segments) - 1
    document_ends = ends[last_segment]
    lengths = np.diff(document_ends, prepend=0)
    document = np.repeat(np.arange(len(num_segments)), num_segments)  # of each segment
    chosen = np.flatnonzero(supervised & (counts > 0))
    return TokenizedDocuments(
        tokens=tokens,
        lengths=lengths.astype(np.int32),
        **_spans(ends[chosen] - counts[chosen], ends[chosen], document[chosen], document_ends),
    )


def _spans(
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    document: NDArray[np.int64],
    document_ends: NDArray[np.int64],
) -> dict[str, NDArray[np.int32]]:
    """Spans of segments that touch each other are one."""
    opens = np.ones(len(begins), np.bool_)
    opens[1:] = (begins[1:] != ends[:-1]) | (document[1:] != document[:-1])
    closes = np.ones(len(begins), np.bool_)
    closes[:-1] = opens[1:]
    document = document[opens]
    starts = np.concatenate(([0], document_ends[:-1]))[document]
    spans = np.stack([begins[opens] - starts, ends[closes] - starts], axis=1)
    counts = np.bincount(document, minlength=len(document_ends))
    return {"spans": spans.astype(np.int32), "span_counts": counts.astype(np.int32)}


def cut_documents(
    documents: TokenizedDocuments, *, limit: int
) -> tuple[TokenizedDocuments, NDArray[np.bool_]]:
    """Every document up to `limit` tokens, and which were longer, [num_documents]."""
    longer = documents.lengths > limit
    if not longer.any():
        return documents, longer
    begins = np.cumsum(documents.lengths, dtype=np.int64) - documents.lengths
    position = np.arange(len(documents.tokens)) - np.repeat(begins, documents.lengths)
    spans = np.minimum(documents.spans, limit)
    left = spans[:, 0] < spans[:, 1]
    document = np.repeat(np.arange(len(longer)), documents.span_counts)
    return TokenizedDocuments(
        tokens=documents.tokens[position < limit],
        lengths=np.minimum(documents.lengths, limit).astype(np.int32),
        span_counts=np.bincount(document[left], minlength=len(longer)).astype(np.int32),
        spans=spans[left],
    ), longer


def choose_documents(
    documents: TokenizedDocuments, chosen: NDArray[np.bool_]
) -> TokenizedDocuments:
    """Those documents only."""
    if chosen.all():
        return documents
    return TokenizedDocuments(
        tokens=documents.tokens[np.repeat(chosen, documents.lengths)],
        lengths=documents.lengths[chosen],
        span_counts=documents.span_counts[chosen],
        spans=documents.spans[np.repeat(chosen, documents.span_counts)],
    )


def count_tokens(documents: TokenizedDocuments, token: int | None) -> NDArray[np.int32]:
    """How often the token stands in each document, [num_documents]."""
    if token is None or len(documents.lengths) == 0:
        return np.zeros(len(documents.lengths), np.int32)
    begins = np.cumsum(documents.lengths, dtype=np.int64) - documents.lengths
    return np.add.reduceat(documents.tokens == token, begins, dtype=np.int32)
