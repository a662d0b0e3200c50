from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Arena:
    def __init__(self) -> None: ...
    @property
    def idle_bytes(self) -> int: ...

def build_packs(
    lengths: NDArray[np.int32],
    *,
    capacity: int,
    strategy: int,
    seed: int,
    epoch: int,
    alignment: int,
    overlong: int,
    cost_token: int,
    cost_square: int,
    threads: int,
    arena: Arena | None,
) -> tuple[
    NDArray[np.int64], NDArray[Any], NDArray[np.int32], tuple[int, int, int, int, int, int]
]: ...
def pack_statistics(
    lengths: NDArray[np.int32],
    offsets: NDArray[np.int64],
    documents: NDArray[Any],
    begins: NDArray[np.int32],
    *,
    capacity: int,
    alignment: int,
    truncates: bool,
) -> tuple[int, int, int, int, int, int, tuple[int, ...], int, int]: ...
def pack_totals(
    lengths: NDArray[np.int32],
    offsets: NDArray[np.int64],
    documents: NDArray[Any],
    begins: NDArray[np.int32],
    *,
    capacity: int,
    alignment: int,
    truncates: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def check_pack_coverage(
    lengths: NDArray[np.int32],
    offsets: NDArray[np.int64],
    documents: NDArray[Any],
    begins: NDArray[np.int32],
    ledger: tuple[int, ...],
    *,
    capacity: int,
    alignment: int,
    truncates: bool,
) -> None: ...
def deal_packs(costs: NDArray[np.int64], ranks: int) -> NDArray[np.int64]: ...

class PackFile:
    header_bytes: int
    hashed_bytes: int
    strategy: int
    overlong: int
    cost: tuple[int, int]
    ledger: tuple[int, int, int, int, int, int]
    num_packs: int
    num_pieces: int
    capacity: int
    alignment: int
    seed: int
    epoch: int
    id_bytes: int
    has_begins: bool
    lengths_xxh3: int
    payload_xxh3: int
    header_xxh3: int
    def __init__(self) -> None: ...
    @staticmethod
    def parse(content: Buffer, name: str) -> PackFile: ...
    @property
    def documents_begin(self) -> int: ...
    @property
    def begins_begin(self) -> int: ...
    @staticmethod
    def check_arrays(content: Buffer, name: str) -> None: ...
    def to_bytes(self) -> bytes: ...

class PackOrder:
    def __init__(self, num_packs: int, seed: int) -> None: ...
    def pack_at(self, position: int) -> int: ...

class IndexedDataset:
    def __init__(self, prefix: Path) -> None: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def has_modes(self) -> bool: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def document(self, idx: int) -> NDArray[Any]: ...
    def sequence(self, idx: int) -> NDArray[Any]: ...
    def documents(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]: ...
    def lengths(self) -> NDArray[np.int32]: ...
    def check_tables(self) -> None: ...
    def check_token_ids(self, vocab_size: int) -> None: ...

class SpanTable:
    def __init__(self, path: Path) -> None: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def num_spans(self) -> int: ...
    @property
    def num_supervised(self) -> int: ...
    def offsets(self) -> NDArray[np.int64]: ...
    def spans(self) -> NDArray[np.int32]: ...
    def document(self, idx: int) -> NDArray[np.int32]: ...
    def check(self, lengths: NDArray[np.int32]) -> None: ...

class AttributeTable:
    def __init__(self, path: Path) -> None: ...
    @property
    def num_documents(self) -> int: ...
    def document(self, idx: int) -> tuple[bytes, int, int, int, int]: ...
    def values(self, column: int) -> list[bytes]: ...
    def codes(self, column: int) -> NDArray[np.uint32]: ...
    def id_text(self) -> NDArray[np.uint8]: ...
    def check(self) -> None: ...

class PackBuffers:
    def __init__(
        self,
        tokens: NDArray[Any],
        labels: NDArray[Any],
        loss_weights: NDArray[np.float32],
        position_ids: NDArray[Any],
        document_ids: NDArray[np.int32],
        cu_seqlens: NDArray[np.int32],
    ) -> None: ...

class PackGatherer:
    def __init__(
        self,
        dataset: IndexedDataset,
        span_offsets: NDArray[np.int64],
        spans: NDArray[np.int32],
        pack_offsets: NDArray[np.int64],
        documents: NDArray[Any],
        begins: NDArray[np.int32],
        *,
        capacity: int,
        alignment: int,
        truncates: bool,
        vocab_size: int,
        pad_id: int,
    ) -> None: ...
    def gather(self, pack_idx: int, buffers: PackBuffers) -> tuple[int, int, int]: ...
    def gather_batch(
        self, pack_indices: NDArray[np.int64], buffers: list[PackBuffers], threads: int
    ) -> NDArray[np.int64]: ...
    def prefetch(self, pack_idx: int) -> None: ...

def packed_metadata(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    tokens: int,
    supervised: int,
    position_ids: int,
    document_ids: int,
    segment_ends: int,
    labels: int,
    loss_weights: int,
    max_seqlen: int,
    /,
) -> None: ...
def dense_mask(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    row_length: int,
    banded: bool,
    causal: bool,
    window: int,
    element_bytes: int,
    mask: int,
    /,
) -> None: ...
def segment_loss(
    token_losses: int,
    loss_weights: int,
    num_tokens: int,
    cu_seqlens: int,
    num_documents: int,
    slice_ids: int,
    num_columns: int,
    num_slices: int,
    document_losses: int,
    document_counts: int,
    slice_losses: int,
    slice_counts: int,
    /,
) -> None: ...
def block_mask(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    causal: bool,
    window: int,
    with_key_bounds: bool,
    buffer: int,
    /,
) -> None: ...
def context_parallel_split(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    cp_size: int,
    num_slots: int,
    cu_seqlens_padded: int,
    token_idx: int,
    position_ids: int,
    inverse: int,
    /,
) -> None: ...

class SentencePieceBpe:
    def __init__(
        self,
        pieces: Sequence[str],
        *,
        scores: NDArray[np.float32],
        kinds: NDArray[np.uint8],
        byte_fallback: bool,
        dummy_prefix: bool,
    ) -> None: ...
    def encode_batch(
        self, texts: Sequence[str], *, continuation: bool, threads: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...

def fingerprint_texts(
    texts: Sequence[str], *, threads: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]: ...

class DuplicateFinder:
    def __init__(self, threshold: float) -> None: ...
    @property
    def num_documents(self) -> int: ...
    def add(
        self,
        exact: NDArray[np.uint64],
        numbers: NDArray[np.uint64],
        signatures: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...

class ContaminationIndex:
    def __init__(
        self, *, ngram: int, shortest: int, chinese_ngram: int, chinese_shortest: int
    ) -> None: ...
    @property
    def num_texts(self) -> int: ...
    def add(self, texts: Sequence[str], *, chinese: bool) -> NDArray[np.uint8]: ...
    def find(
        self, questions: Sequence[str], answers: Sequence[str], *, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]: ...
