"""dense_mask on CUDA against the CPU's, bitwise: both take a row's range from one function."""

import pytest
import torch

from dsm_engine.ops.dense_mask import dense_mask
from dsm_engine.ops.library import cuda_core

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]


def _cu_seqlens(num_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, num_tokens + 1, (20,), generator=generator).sort().values
    ends = torch.tensor([num_tokens, num_tokens])
    return torch.cat([torch.zeros(1, dtype=torch.long), cuts, ends]).int()


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 16, 17, 127, 128, 1000, 4096, 4099])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"window": 37},
        {"causal": False, "window": 37},
        {"bandwidth": 1},
        {"bandwidth": 200},
        {"bandwidth": 333, "window": 256},
    ],
)
def test_cuda_equals_the_cpu(num_tokens: int, dtype: torch.dtype, options: dict) -> None:
    cu_seqlens = _cu_seqlens(num_tokens, seed=num_tokens)
    expected = dense_mask(cu_seqlens, num_tokens, dtype=dtype, **options)
    found = dense_mask(cu_seqlens.cuda(), num_tokens, dtype=dtype, **options)
    assert torch.equal(expected, found.cpu())


def test_strided_cu_seqlens_and_a_side_stream_give_the_same_mask() -> None:
    cu_seqlens = _cu_seqlens(1000, seed=2)
    strided = torch.stack([cu_seqlens, cu_seqlens], 1).cuda()[:, 0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = dense_mask(strided, 1000)
    stream.synchronize()
    assert torch.equal(dense_mask(cu_seqlens, 1000), found.cpu())


def test_more_than_32_bits_of_bytes_are_written() -> None:
    num_tokens = 40_000  # 6.4 GB
    cu_seqlens = torch.tensor([0, 1, 39_000, num_tokens], dtype=torch.int32)
    mask = dense_mask(cu_seqlens.cuda(), num_tokens, dtype=torch.float32)[0, 0]
    last_row = torch.full((num_tokens,), float("-inf"))
    last_row[39_000:] = 0
    assert torch.equal(mask[-1].cpu(), last_row)
    assert (mask == 0).sum().item() == sum(n * (n + 1) // 2 for n in (1, 38_999, 1_000))


def test_a_captured_graph_reads_what_cu_seqlens_holds_at_replay() -> None:
    cu_seqlens = _cu_seqlens(1000, seed=0).cuda()
    dense_mask(cu_seqlens, 1000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = dense_mask(cu_seqlens, 1000)
    other = _cu_seqlens(1000, seed=1)
    cu_seqlens.copy_(other)
    graph.replay()
    assert torch.equal(dense_mask(other, 1000), found.cpu())
