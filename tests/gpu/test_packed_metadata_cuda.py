"""packed_metadata on CUDA against the CPU's, bitwise: both run the same host-device body."""

import pytest
import torch

from dsm_engine.errors import DsmError
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.packed_metadata import packed_metadata

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]


def _inputs(num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, num_tokens + 1, (20,), generator=generator).sort().values
    ends = torch.tensor([num_tokens, num_tokens])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), cuts, ends]).int()
    tokens = torch.randint(0, 100_000, (num_tokens,), generator=generator)
    return cu_seqlens, tokens, torch.rand(num_tokens, generator=generator) < 0.6


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 16, 127, 128, 1000, 1024, 1025, 65536])
def test_cuda_equals_the_cpu(num_tokens: int) -> None:
    inputs = _inputs(num_tokens, seed=num_tokens)
    expected = packed_metadata(*inputs)
    found = packed_metadata(*(tensor.cuda() for tensor in inputs))
    for name, expected_output, found_output in zip(found._fields, expected, found, strict=True):
        assert torch.equal(expected_output, found_output.cpu()), name


def test_more_documents_than_a_block_has_threads() -> None:
    lengths = torch.ones(5000, dtype=torch.long)
    lengths[4321] = 9
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    tokens, supervised = torch.arange(5008), torch.ones(5008, dtype=torch.bool)
    found = packed_metadata(cu_seqlens.cuda(), tokens.cuda(), supervised.cuda())
    assert found.max_seqlen.item() == 9


def test_strided_cu_seqlens_and_a_side_stream_give_the_same_metadata() -> None:
    inputs = _inputs(1000, seed=2)
    strided = [torch.stack([tensor, tensor], 1).cuda()[:, 0] for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = packed_metadata(*strided)
    stream.synchronize()
    for on_host, on_device in zip(packed_metadata(*inputs), found, strict=True):
        assert torch.equal(on_host, on_device.cpu())


def test_views_that_begin_between_16_bytes_are_read() -> None:
    cu_seqlens, tokens, supervised = _inputs(1000, seed=0)
    expected = packed_metadata(cu_seqlens, tokens, supervised)
    views = [torch.cat([tensor[:1], tensor]).cuda()[1:] for tensor in (tokens, supervised)]
    for expected_output, found_output in zip(
        expected, packed_metadata(cu_seqlens.cuda(), *views), strict=True
    ):
        assert torch.equal(expected_output, found_output.cpu())


def test_a_captured_graph_reads_what_its_inputs_hold_at_replay() -> None:
    inputs = [tensor.cuda() for tensor in _inputs(1000, seed=0)]
    packed_metadata(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = packed_metadata(*inputs)
    others = _inputs(1000, seed=1)
    for tensor, other in zip(inputs, others, strict=True):
        tensor.copy_(other)
    graph.replay()
    for expected_output, found_output in zip(packed_metadata(*others), found, strict=True):
        assert torch.equal(expected_output, found_output.cpu())


def test_tensors_of_two_devices_are_rejected() -> None:
    cu_seqlens, tokens, supervised = _inputs(16, seed=0)
    with pytest.raises(DsmError, match="all tensors are on one device, found cpu, cuda:0"):
        packed_metadata(cu_seqlens, tokens.cuda(), supervised.cuda())
