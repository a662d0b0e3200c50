"""The CUDA split against the CPU's, bitwise: both run the same host-device body."""

import pytest
import torch

from dsm_engine.ops.context_parallel import context_parallel_slots, context_parallel_split
from dsm_engine.ops.library import cuda_core

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]


def _random_cu_seqlens(
    generator: torch.Generator, num_tokens: int, num_cuts: int = 20
) -> torch.Tensor:
    cuts = torch.randint(0, num_tokens + 1, (num_cuts,), generator=generator).sort().values
    return torch.tensor([0, *cuts.tolist(), num_tokens, num_tokens], dtype=torch.int32)


@pytest.mark.parametrize("num_cuts", [0, 20, 300, 2000])
@pytest.mark.parametrize("cp_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_tokens", [1, 2, 127, 128, 1001])
def test_cuda_equals_the_cpu(num_tokens, cp_size, num_cuts) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    cu_seqlens = _random_cu_seqlens(generator, num_tokens, num_cuts)
    options = {
        "cp_size": cp_size,
        "num_slots": context_parallel_slots(num_tokens, len(cu_seqlens) - 1, cp_size),
    }
    expected = context_parallel_split(cu_seqlens, num_tokens, **options)
    found = context_parallel_split(cu_seqlens.cuda(), num_tokens, **options)
    for on_host, on_device in zip(expected, found, strict=True):
        assert torch.equal(on_host, on_device.cpu())


def test_a_pack_without_tokens_is_all_tail() -> None:
    cu_seqlens = torch.zeros(2, dtype=torch.int32, device="cuda")
    split = context_parallel_split(cu_seqlens, 0, cp_size=2, num_slots=4)
    assert split.token_idx.tolist() == [[-1, -1], [-1, -1]]
    assert split.inverse.numel() == 0


def test_strided_cu_seqlens_and_a_side_stream_give_the_same_split() -> None:
    cu_seqlens = _random_cu_seqlens(torch.Generator().manual_seed(1), 1000)
    strided = torch.stack([cu_seqlens, cu_seqlens], 1).cuda()[:, 0]
    options = {"cp_size": 4, "num_slots": context_parallel_slots(1000, len(cu_seqlens) - 1, 4)}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = context_parallel_split(strided, 1000, **options)
    stream.synchronize()
    expected = context_parallel_split(cu_seqlens, 1000, **options)
    for on_host, on_device in zip(expected, found, strict=True):
        assert torch.equal(on_host, on_device.cpu())


def test_tokens_that_find_no_slot_are_named_by_num_slots() -> None:
    cu_seqlens = torch.tensor([0, 5, 7], dtype=torch.int32, device="cuda")
    split = context_parallel_split(cu_seqlens, 7, cp_size=2, num_slots=8)
    assert split.inverse.tolist() == [0, 1, 4, 5, 6, 8, 8]
    assert split.cu_seqlens_padded.tolist() == [0, 8, 8]


def test_a_captured_graph_serves_the_next_pack() -> None:
    generator = torch.Generator().manual_seed(3)
    cu_seqlens = _random_cu_seqlens(generator, 1000).cuda()
    options = {"cp_size": 4, "num_slots": context_parallel_slots(1000, len(cu_seqlens) - 1, 4)}
    context_parallel_split(cu_seqlens, 1000, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        split = context_parallel_split(cu_seqlens, 1000, **options)
    for _ in range(3):
        next_pack = _random_cu_seqlens(generator, 1000)
        cu_seqlens.copy_(next_pack)
        graph.replay()
        expected = context_parallel_split(next_pack, 1000, **options)
        for on_host, on_device in zip(expected, split, strict=True):
            assert torch.equal(on_host, on_device.cpu())
