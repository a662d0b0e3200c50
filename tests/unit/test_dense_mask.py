"""dense_mask: equal to its plain torch reference in every form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.errors import DsmError
from dsm_engine.ops.dense_mask import dense_mask, dense_mask_reference
from dsm_engine.ops.library import cuda_core

DTYPES = [torch.bool, torch.bfloat16, torch.float32]


def _cu_seqlens(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=10),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 50),
)
def test_the_mask_equals_the_reference(
    lengths: list[int], dtype: torch.dtype, causal: bool, window: int | None
) -> None:
    cu_seqlens, num_tokens = _cu_seqlens(lengths), sum(lengths)
    mask = dense_mask(cu_seqlens, num_tokens, dtype=dtype, causal=causal, window=window)
    expected = dense_mask_reference(
        cu_seqlens, num_tokens, dtype=dtype, causal=causal, window=window
    )
    assert (mask.dtype, mask.shape) == (dtype, (1, 1, num_tokens, num_tokens))
    assert torch.equal(mask, expected)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=10),
    dtype=st.sampled_from(DTYPES),
    window=st.none() | st.integers(1, 50),
    bandwidth=st.integers(1, 90),
)
def test_the_band_equals_the_reference(
    lengths: list[int], dtype: torch.dtype, window: int | None, bandwidth: int
) -> None:
    cu_seqlens, num_tokens = _cu_seqlens(lengths), sum(lengths)
    options = {"dtype": dtype, "window": window, "bandwidth": bandwidth}
    mask = dense_mask(cu_seqlens, num_tokens, **options)
    assert mask.shape == (1, 1, num_tokens, bandwidth)
    assert torch.equal(mask, dense_mask_reference(cu_seqlens, num_tokens, **options))


def test_masks_written_by_hand() -> None:
    cu_seqlens = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    causal = dense_mask(cu_seqlens, 5)[0, 0].int()
    assert causal.tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    full = dense_mask(cu_seqlens, 5, causal=False, window=2)[0, 0].int()
    assert full.tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    band = dense_mask(cu_seqlens, 5, bandwidth=3, dtype=torch.float32)[0, 0]
    out = -math.inf
    assert band.tolist() == [[out, out, 0], [out, 0, 0], [out, out, 0], [out, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_under_the_mask_is_that_of_each_document(dtype: torch.dtype) -> None:
    lengths = [5, 1, 9]
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 8, generator=generator).unbind()
    attention = torch.nn.functional.scaled_dot_product_attention
    mask = dense_mask(_cu_seqlens(lengths), sum(lengths), dtype=dtype)
    found = attention(query, key, value, attn_mask=mask if dtype == torch.bool else mask.float())
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    expected = torch.cat([attention(*part, is_causal=True) for part in parts], dim=2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], "from 0 to 4, found 2 entries from 0 to 5"),
        ([0, 3, 2, 4], "falls at entry 2, from 3 to 2"),
        ([0], "two or more int32"),
    ],
)
def test_cu_seqlens_that_are_no_pack_are_rejected(cu_seqlens: list[int], message: str) -> None:
    with pytest.raises(DsmError, match=message):
        dense_mask(torch.tensor(cu_seqlens, dtype=torch.int32), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, r"bool, bfloat16 or float32, found torch\.float16"),
        ({"window": 0}, "window is 1 or more, or None, found 0"),
        ({"bandwidth": 0}, r"bandwidth is 1 to 2\^31 - 1, found 0"),
        ({"bandwidth": 4, "causal": False}, "a bandwidth needs causal=True"),
    ],
)
def test_options_outside_their_range_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(DsmError, match=message):
        dense_mask(_cu_seqlens([4]), 4, **options)


def test_int64_cu_seqlens_and_negative_sizes_are_rejected() -> None:
    with pytest.raises(DsmError, match=r"found torch\.int64"):
        dense_mask(torch.tensor([0, 4]), 4)
    with pytest.raises(DsmError, match="found -1"):
        dense_mask(torch.tensor([0, 4], dtype=torch.int32), -1)
    with pytest.raises(DsmError, match="num_tokens is an int, found Tensor"):
        dense_mask(torch.tensor([0, 4], dtype=torch.int32), torch.tensor(4))  # pyright: ignore


def test_a_window_larger_than_any_pack_is_none() -> None:
    cu_seqlens = _cu_seqlens([3, 7, 6])
    assert torch.equal(dense_mask(cu_seqlens, 16, window=1 << 70), dense_mask(cu_seqlens, 16))


@pytest.mark.parametrize("bandwidth", [None, 5])
def test_the_operator_passes_opcheck(bandwidth: int | None) -> None:
    options = {"dtype": torch.bfloat16, "causal": True, "window": 4, "bandwidth": bandwidth}
    result = torch.library.opcheck(
        torch.ops.dsm.dense_mask.default, (_cu_seqlens([3, 7, 6]), 16), options
    )
    assert set(result.values()) == {"SUCCESS"}


def test_the_operator_compiles_without_a_graph_break() -> None:
    cu_seqlens = _cu_seqlens([3, 7, 6])
    compiled = torch.compile(dense_mask, fullgraph=True, backend="eager")
    found = compiled(cu_seqlens, 16, dtype=torch.float32, window=3)
    assert torch.equal(found, dense_mask(cu_seqlens, 16, dtype=torch.float32, window=3))


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="dense_mask: CUDA error"):
        cuda_core.dense_mask(0, 3, 16, 16, False, True, 16, 1, 0, 0)
