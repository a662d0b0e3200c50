from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_packs(
    lengths: NDArray[np.int32], capacity: int, strategy: str, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[Any]]: ...

class PackOrder:
    def __init__(self, num_packs: int, seed: int) -> None: ...
    def pack_at(self, position: int) -> int: ...

class IndexedDataset:
    def __init__(self, prefix: Path) -> None: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def document(self, idx: int) -> NDArray[Any]: ...
    def lengths(self) -> NDArray[np.int32]: ...

class PackGatherer:
    def __init__(
        self,
        dataset: IndexedDataset,
        span_offsets: NDArray[np.int64],
        spans: NDArray[np.int32],
        pack_offsets: NDArray[np.int64],
        documents: NDArray[Any],
        vocab_size: int,
        pad_id: int,
    ) -> None: ...
    def gather(
        self,
        pack_idx: int,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_weights: NDArray[np.float32],
        position_ids: NDArray[np.int64],
        document_ids: NDArray[np.int32],
        cu_seqlens: NDArray[np.int32],
    ) -> tuple[int, int, int]: ...

def packed_metadata(
    cu_seqlens: int, num_entries: int, num_tokens: int, position_ids: int, document_ids: int
) -> None: ...
def dense_mask(cu_seqlens: int, num_entries: int, num_tokens: int, mask: int) -> None: ...
