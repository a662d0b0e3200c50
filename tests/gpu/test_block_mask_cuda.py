"""The CUDA block mask against the CPU's, bitwise where it is specified."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from dsm_engine.ops.block_mask import block_mask, block_mask_lists
from dsm_engine.ops.library import cuda_core

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]


def _random_cu_seqlens(generator: torch.Generator, num_tokens: int) -> torch.Tensor:
    cuts = torch.randint(0, num_tokens + 1, (20,), generator=generator).sort().values
    return torch.tensor([0, *cuts.tolist(), num_tokens, num_tokens], dtype=torch.int32)


def _listed(lists) -> list[torch.Tensor]:
    """The counts, and the indices that they cover, on the host."""
    covered = [
        indices[torch.arange(indices.size(-1), device=indices.device) < counts[..., None]]
        for counts, indices in zip(lists[::2], lists[1::2], strict=True)
    ]
    return [part.cpu() for part in (*lists[::2], *covered)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("block_size", [1, 7, 16, 128, (64, 128), (128, 32)])
@pytest.mark.parametrize("num_tokens", [1, 3, 127, 128, 129, 1000])
def test_cuda_equals_the_cpu(num_tokens, block_size, window, causal) -> None:
    cu_seqlens = _random_cu_seqlens(torch.Generator().manual_seed(num_tokens), num_tokens)
    options = {"block_size": block_size, "window": window, "causal": causal}
    expected = block_mask_lists(cu_seqlens, num_tokens, **options)
    found = block_mask_lists(cu_seqlens.cuda(), num_tokens, **options)
    for on_host, from_device in zip(_listed(expected), _listed(found), strict=True):
        assert torch.equal(on_host, from_device)
    token_idx = torch.arange(num_tokens)
    places = (token_idx[:, None], token_idx[:, None], token_idx[:, None], token_idx)
    on_device = tuple(place.cuda() for place in places)
    host_mask = block_mask(cu_seqlens, num_tokens, **options).mask_mod(*places)
    device_mask = block_mask(cu_seqlens.cuda(), num_tokens, **options).mask_mod(*on_device)
    assert torch.equal(host_mask, device_mask.cpu())


@pytest.mark.parametrize("causal", [True, False])
def test_what_stands_behind_the_count_is_zeros(causal) -> None:
    cu_seqlens = _random_cu_seqlens(torch.Generator().manual_seed(0), 1000).cuda()
    lists = block_mask_lists(cu_seqlens, 1000, block_size=16, causal=causal)
    for counts, indices in zip(lists[::2], lists[1::2], strict=True):
        behind = torch.arange(indices.size(-1), device="cuda") >= counts[..., None]
        assert not indices[behind].any()


def test_a_pack_without_tokens_has_empty_lists() -> None:
    lists = block_mask_lists(torch.zeros(2, dtype=torch.int32, device="cuda"), 0)
    torch.cuda.synchronize()
    assert [part.numel() for part in lists] == [0] * 8


def test_strided_cu_seqlens_and_a_side_stream_give_the_same_lists() -> None:
    cu_seqlens = _random_cu_seqlens(torch.Generator().manual_seed(1), 1000)
    strided = torch.stack([cu_seqlens, cu_seqlens], 1).cuda()[:, 0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lists = block_mask_lists(strided, 1000)
    stream.synchronize()
    expected = _listed(block_mask_lists(cu_seqlens, 1000))
    for on_host, from_device in zip(expected, _listed(lists), strict=True):
        assert torch.equal(on_host, from_device)


def test_a_captured_graph_serves_the_next_pack() -> None:
    generator = torch.Generator().manual_seed(3)
    cu_seqlens = _random_cu_seqlens(generator, 1000).cuda()
    block_mask_lists(cu_seqlens, 1000)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lists = block_mask_lists(cu_seqlens, 1000)
    for _ in range(3):
        next_pack = _random_cu_seqlens(generator, 1000)
        cu_seqlens.copy_(next_pack)
        graph.replay()
        expected = _listed(block_mask_lists(next_pack, 1000))
        for on_host, from_device in zip(expected, _listed(lists), strict=True):
            assert torch.equal(on_host, from_device)


@pytest.mark.parametrize("num_tokens", [1024, 1000])
@pytest.mark.parametrize("causal", [True, False])
def test_compiled_attention_equals_dense_attention(causal, num_tokens) -> None:
    generator = torch.Generator().manual_seed(4)
    cu_seqlens = _random_cu_seqlens(generator, num_tokens)
    inputs = [
        torch.randn(1, 2, num_tokens, 64, generator=generator).cuda().requires_grad_()
        for _ in range(3)
    ]
    mask = block_mask(cu_seqlens.cuda(), num_tokens, causal=causal)
    document = torch.searchsorted(cu_seqlens, torch.arange(num_tokens), right=True).cuda()
    dense = document[:, None] == document
    if causal:
        dense = dense.tril()
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=dense)
    output = torch.compile(flex_attention)(*inputs, block_mask=mask)
    # Compiled attention may multiply in TF32.
    torch.testing.assert_close(output, expected, rtol=0, atol=5e-3)
    weights = torch.randn(output.shape, generator=generator).cuda()
    found = torch.autograd.grad(output, inputs, weights)
    for gradient, reference in zip(
        found, torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=2e-2)
