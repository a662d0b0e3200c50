"""What the launchers of the CUDA operators do before a kernel: bad sizes and addresses are errors.

Without a device, whose driver would be asked next: sound arguments end there, with a clean error.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsm_engine.ops.library import cuda_core

pytestmark = [
    pytest.mark.skipif(cuda_core is None, reason="built without nvcc"),
    pytest.mark.skipif(
        torch.cuda.is_available() or Path("/dev/nvidiactl").exists(),
        reason="a device would be given addresses of nothing",
    ),
]

ADDRESS = 1 << 20
LAUNCHERS: dict[str, dict[str, Any]] = {
    "packed_metadata": {
        "cu_seqlens": ADDRESS,
        "num_entries": 3,
        "num_tokens": 16,
        "tokens": ADDRESS,
        "supervised": ADDRESS,
        "position_ids": ADDRESS,
        "document_ids": ADDRESS,
        "segment_ends": ADDRESS,
        "labels": ADDRESS,
        "loss_weights": ADDRESS,
        "max_seqlen": ADDRESS,
        "stream": 0,
    },
    "dense_mask": {
        "cu_seqlens": ADDRESS,
        "num_entries": 3,
        "num_tokens": 16,
        "row_length": 16,
        "banded": False,
        "causal": True,
        "window": 16,
        "element_bytes": 2,
        "mask": ADDRESS,
        "stream": 0,
    },
    "block_mask": {
        "cu_seqlens": ADDRESS,
        "num_entries": 3,
        "num_tokens": 16,
        "query_block_size": 8,
        "key_block_size": 8,
        "causal": True,
        "window": 16,
        "with_key_bounds": True,
        "buffer": ADDRESS,
        "stream": 0,
    },
    "context_parallel_split": {
        "cu_seqlens": ADDRESS,
        "num_entries": 3,
        "num_tokens": 16,
        "cp_size": 2,
        "num_slots": 24,
        "cu_seqlens_padded": ADDRESS,
        "token_idx": ADDRESS,
        "position_ids": ADDRESS,
        "inverse": ADDRESS,
        "stream": 0,
    },
    "segment_loss": {
        "token_losses": ADDRESS,
        "loss_weights": ADDRESS,
        "num_tokens": 16,
        "cu_seqlens": ADDRESS,
        "num_documents": 2,
        "slice_ids": ADDRESS,
        "num_columns": 1,
        "num_slices": 3,
        "document_losses": ADDRESS,
        "document_counts": ADDRESS,
        "slice_losses": ADDRESS,
        "slice_counts": ADDRESS,
        "stream": 0,
    },
}
"""Sound arguments of each, in its order."""

BAD_SIZES = [
    ("packed_metadata", {"num_entries": 1}),
    ("packed_metadata", {"num_tokens": -1}),
    ("packed_metadata", {"num_tokens": 1 << 31}),
    ("packed_metadata", {"num_tokens": (1 << 63) - 1}),
    ("dense_mask", {"num_entries": 1}),
    ("dense_mask", {"num_tokens": -1}),
    ("dense_mask", {"num_tokens": 1 << 31}),
    ("dense_mask", {"row_length": -1}),
    ("block_mask", {"num_entries": 1}),
    ("block_mask", {"num_tokens": -1}),
    ("block_mask", {"num_tokens": 1 << 31}),
    ("block_mask", {"query_block_size": 0}),
    ("block_mask", {"key_block_size": 1 << 31}),
    ("block_mask", {"window": 0}),
    ("context_parallel_split", {"num_entries": 1}),
    ("context_parallel_split", {"num_tokens": 1 << 31}),
    ("context_parallel_split", {"cp_size": 0}),
    ("context_parallel_split", {"num_slots": 22}),
    ("context_parallel_split", {"num_slots": 1 << 31}),
    ("segment_loss", {"num_documents": 0}),
    ("segment_loss", {"num_documents": 1 << 31}),
    ("segment_loss", {"num_tokens": -1}),
    ("segment_loss", {"num_columns": -1}),
    ("segment_loss", {"num_slices": -1}),
    ("segment_loss", {"num_slices": 1 << 31}),
]
ON_16_BYTES = [
    *(("packed_metadata", name) for name in ("position_ids", "document_ids", "segment_ends")),
    *(("packed_metadata", name) for name in ("labels", "loss_weights")),
    ("block_mask", "buffer"),
    *(("context_parallel_split", name) for name in ("token_idx", "position_ids", "inverse")),
]


def launch(name: str, **changes: Any) -> None:
    getattr(cuda_core, name)(*(LAUNCHERS[name] | changes).values())


def test_every_launcher_is_tested() -> None:
    names = {name for name in dir(cuda_core) if not name.startswith("_")}
    assert names == LAUNCHERS.keys() | {"runtime_status"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_sound_arguments_without_a_driver_are_a_clean_error(name) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: CUDA error (35|100): "):
        launch(name)


@pytest.mark.parametrize(("name", "change"), BAD_SIZES)
def test_sizes_that_make_no_grid_are_rejected(name, change) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: CUDA error 1: invalid argument"):
        launch(name, **change)


@pytest.mark.parametrize(("name", "argument"), ON_16_BYTES)
def test_what_is_stored_to_by_16_bytes_must_stand_on_them(name, argument) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: CUDA error 716: misaligned address"):
        launch(name, **{argument: ADDRESS + 8})


@pytest.mark.parametrize("name", ["dense_mask", "block_mask"])
def test_a_pack_of_no_tokens_has_nothing_to_launch(name) -> None:
    launch(name, num_tokens=0)
