"""The operators over cu_seqlens: equal to their plain torch references, and safe on bad input."""

import pytest
import torch

from dsm_engine.errors import DsmError
from dsm_engine.ops.dense_mask import dense_mask, dense_mask_reference
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.packed_metadata import packed_metadata, packed_metadata_reference


def _random_cu_seqlens(generator: torch.Generator, num_tokens: int, padding: int) -> torch.Tensor:
    num_cuts = int(torch.randint(0, min(num_tokens, 40), (1,), generator=generator))
    cuts = torch.randperm(num_tokens - 1, generator=generator)[:num_cuts].sort().values + 1
    ends = torch.full((1 + padding,), num_tokens)
    return torch.cat([torch.zeros(1, dtype=torch.long), cuts, ends]).int()


def _packs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = [1, 2, 3, 15, 16, 17, 127, 128, 129, 400]
    packs = [
        _random_cu_seqlens(generator, num_tokens, padding)
        for num_tokens in sizes
        for padding in (0, 1, 9)
        for _ in range(4)
    ]
    every_token_alone = torch.arange(65, dtype=torch.int32)
    return [*packs, every_token_alone, torch.tensor([0, 0, 3, 3, 3, 8], dtype=torch.int32)]


def test_metadata_equals_the_reference_on_random_packs() -> None:
    for cu_seqlens in _packs():
        num_tokens = int(cu_seqlens[-1])
        position_ids, document_ids = packed_metadata(cu_seqlens, num_tokens)
        expected_positions, expected_documents = packed_metadata_reference(cu_seqlens, num_tokens)
        assert torch.equal(position_ids, expected_positions)
        assert torch.equal(document_ids, expected_documents)
        assert (position_ids.dtype, document_ids.dtype) == (torch.int64, torch.int32)


def test_metadata_of_a_pack_written_by_hand() -> None:
    cu_seqlens = torch.tensor([0, 3, 4, 6, 6], dtype=torch.int32)
    position_ids, document_ids = packed_metadata(cu_seqlens, 6)
    assert position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert document_ids.tolist() == [0, 0, 0, 1, 2, 2]


def test_mask_equals_the_reference_on_random_packs() -> None:
    for cu_seqlens in _packs():
        num_tokens = int(cu_seqlens[-1])
        mask = dense_mask(cu_seqlens, num_tokens)
        assert mask.dtype == torch.bool
        assert torch.equal(mask, dense_mask_reference(cu_seqlens, num_tokens))


def test_mask_of_a_pack_written_by_hand() -> None:
    mask = dense_mask(torch.tensor([0, 2, 3], dtype=torch.int32), 3)
    assert mask.tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize("op", [packed_metadata, dense_mask])
@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], "from 0 to 4, found 2 entries from 0 to 5"),
        ([1, 4], "from 0 to 4, found 2 entries from 1 to 4"),
        ([0, 3, 2, 4], "falls at entry 2, from 3 to 2"),
        ([0], "two or more int32"),
    ],
)
def test_cu_seqlens_that_are_no_pack_are_rejected(op, cu_seqlens, message) -> None:
    with pytest.raises(DsmError, match=message):
        op(torch.tensor(cu_seqlens, dtype=torch.int32), 4)


@pytest.mark.parametrize("op", [packed_metadata, dense_mask])
def test_int64_cu_seqlens_and_negative_sizes_are_rejected(op) -> None:
    with pytest.raises(DsmError, match=r"found torch\.int64"):
        op(torch.tensor([0, 4]), 4)
    with pytest.raises(DsmError, match="found -1"):
        op(torch.tensor([0, 4], dtype=torch.int32), -1)


@pytest.mark.parametrize("op", ["packed_metadata", "dense_mask"])
def test_operators_pass_opcheck(op) -> None:
    cu_seqlens = torch.tensor([0, 3, 10, 16, 16], dtype=torch.int32)
    result = torch.library.opcheck(getattr(torch.ops.dsm, op).default, (cu_seqlens, 16))
    assert set(result.values()) == {"SUCCESS"}


def test_strided_cu_seqlens_are_read_as_they_are() -> None:
    strided = torch.tensor([0, 9, 2, 9, 4, 9], dtype=torch.int32)[::2]
    assert packed_metadata(strided, 4)[1].tolist() == [0, 0, 1, 1]


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="packed_metadata: CUDA error"):
        cuda_core.packed_metadata(0, 3, 16, 0, 0, 0)
    with pytest.raises(RuntimeError, match="dense_mask: CUDA error"):
        cuda_core.dense_mask(0, 3, 16, 0, 0)
