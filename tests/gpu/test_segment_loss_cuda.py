"""segment_loss on CUDA against the CPU's, bitwise: both add in one order."""

import pytest
import torch

from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.segment_loss import SegmentLoss, segment_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]

NUM_SLICES = 7


def _inputs(num_tokens: int, num_documents: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, num_tokens + 1, (num_documents - 1,), generator=generator).sort().values
    cu_seqlens = torch.cat([torch.tensor([0]), cuts, torch.tensor([num_tokens])]).int()
    # Products of 48 bits of several magnitudes: sums round and show the order of their additions.
    exponents = torch.randint(-8, 8, (num_tokens,), generator=generator)
    token_losses = torch.ldexp(torch.rand(num_tokens, generator=generator), exponents)
    signs = torch.randint(-1, 3, (num_tokens,), generator=generator)
    loss_weights = torch.rand(num_tokens, generator=generator) * signs
    strange = torch.where(loss_weights > 0, token_losses, float("nan"))
    shape = (num_documents, 4)
    slice_ids = torch.randint(-1, NUM_SLICES, shape, generator=generator).int()
    return [strange, loss_weights, cu_seqlens, slice_ids]


def _assert_equal(expected: SegmentLoss, found: SegmentLoss) -> None:
    for name, expected_sum, found_sum in zip(found._fields, expected, found, strict=True):
        assert torch.equal(expected_sum, found_sum.cpu()), name


@pytest.mark.parametrize("num_tokens", [0, 1, 255, 256, 257, 4096, 65536])
@pytest.mark.parametrize("num_documents", [1, 12, 700])
def test_cuda_equals_the_cpu(num_tokens: int, num_documents: int) -> None:
    inputs = _inputs(num_tokens, num_documents)
    found = segment_loss(*(tensor.cuda() for tensor in inputs), NUM_SLICES)
    _assert_equal(segment_loss(*inputs, NUM_SLICES), found)


def test_strided_inputs_and_a_side_stream_give_the_same_sums() -> None:
    inputs = _inputs(4096, 12, seed=2)
    strided = [torch.stack([tensor, tensor], -1).cuda()[..., 0] for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = segment_loss(*strided, NUM_SLICES)
    stream.synchronize()
    _assert_equal(segment_loss(*inputs, NUM_SLICES), found)


def test_the_gradient_equals_the_cpus() -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        token_losses, *rest = (tensor.to(device) for tensor in _inputs(4096, 12))
        token_losses.requires_grad_()
        sums = segment_loss(token_losses, *rest, NUM_SLICES)
        (sums.document_losses.sum() / 3 + sums.slice_losses.sum() / 7).backward()
        assert token_losses.grad is not None
        gradients.append(token_losses.grad.cpu())
    assert torch.equal(*gradients)


def test_slice_ids_out_of_range_are_ignored() -> None:
    *inputs, slice_ids = _inputs(4096, 12)
    expected = segment_loss(*inputs, slice_ids, NUM_SLICES)
    faulty = slice_ids.clone()
    faulty[slice_ids == -1] = 2**31 - 1
    token_losses, *rest = (tensor.cuda() for tensor in inputs)
    token_losses.requires_grad_()
    found = segment_loss(token_losses, *rest, faulty.cuda(), NUM_SLICES)
    _assert_equal(expected, found)
    found.slice_losses.sum().backward()
    torch.cuda.synchronize()


def test_a_captured_graph_reads_what_its_inputs_hold_at_replay() -> None:
    inputs = [tensor.cuda() for tensor in _inputs(4096, 12)]
    segment_loss(*inputs, NUM_SLICES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = segment_loss(*inputs, NUM_SLICES)
    others = _inputs(4096, 12, seed=1)
    for tensor, other in zip(inputs, others, strict=True):
        tensor.copy_(other)
    graph.replay()
    _assert_equal(segment_loss(*others, NUM_SLICES), found)
