"""segment_loss: sums by document and by slice, that let nothing unsupervised in."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.errors import DsmError
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.segment_loss import segment_loss, segment_loss_reference

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]


def _inputs(lengths: list[int], num_columns: int, num_slices: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(lengths)
    # Products of 48 bits of several magnitudes: sums round and show the order of their additions.
    exponents = torch.randint(-8, 8, (num_tokens,), generator=generator)
    token_losses = torch.ldexp(torch.rand(num_tokens, generator=generator), exponents)
    signs = torch.randint(-1, 3, (num_tokens,), generator=generator)
    loss_weights = torch.rand(num_tokens, generator=generator) * signs
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    shape = (len(lengths), num_columns)
    slice_ids = torch.randint(-1, num_slices, shape, generator=generator).int()
    return token_losses, loss_weights, cu_seqlens, slice_ids, num_slices


@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=8)
    | st.lists(st.integers(0, 2), min_size=250, max_size=600),
    num_columns=st.integers(0, 4),
    num_slices=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_sums_equal_the_reference(
    lengths: list[int], num_columns: int, num_slices: int, seed: int
) -> None:
    inputs = _inputs(lengths, num_columns, num_slices, seed)
    found, expected = segment_loss(*inputs), segment_loss_reference(*inputs)
    for name, found_sum, expected_sum in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(found_sum, expected_sum, rtol=1e-12, atol=0, msg=name)


def test_sums_written_by_hand() -> None:
    sums = segment_loss(
        torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]),
        torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0]),
        torch.tensor([0, 3, 3, 5], dtype=torch.int32),
        torch.tensor([[0, 2], [1, 2], [2, 2]], dtype=torch.int32),
        4,
    )
    assert sums.document_losses.tolist() == [2.0, 0.0, 24.0]
    assert sums.document_counts.tolist() == [2, 0, 2]
    assert sums.slice_losses.tolist() == [2.0, 0.0, 26.0, 0.0]
    assert sums.slice_counts.tolist() == [2, 0, 4, 0]


def test_another_order_of_additions_gives_other_bits() -> None:
    inputs = _inputs([300] * 20, 0, 0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    token_losses, loss_weights = (row.view(20, 300)[:, order].flatten() for row in inputs[:2])
    found = segment_loss(token_losses, loss_weights, *inputs[2:]).document_losses
    expected = segment_loss(*inputs).document_losses
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not torch.equal(found, expected)


def _with_nan(inputs: Inputs) -> Inputs:
    token_losses, loss_weights, cu_seqlens, slice_ids, num_slices = inputs
    strange = torch.tensor([math.nan, math.inf, -math.inf]).repeat(len(token_losses))
    replaced = torch.where(loss_weights > 0, token_losses, strange[: len(token_losses)])
    return replaced, loss_weights, cu_seqlens, slice_ids, num_slices


def test_nan_and_infinity_at_positions_without_weight_change_no_bit() -> None:
    inputs = _inputs([300, 7, 0, 40], 2, 3)
    for clean, found in zip(segment_loss(*inputs), segment_loss(*_with_nan(inputs)), strict=True):
        assert torch.equal(clean, found)


def test_a_weight_that_is_nan_does_not_count() -> None:
    inputs = _inputs([2], 0, 0)
    sums = segment_loss(inputs[0], torch.tensor([math.nan, 1.0]), *inputs[2:])
    assert sums.document_losses.tolist() == [inputs[0][1].item()]
    assert sums.document_counts.tolist() == [1]


def test_a_nan_at_a_position_with_weight_stays_in_its_document_and_slices() -> None:
    token_losses = torch.tensor([1.0, math.nan, 3.0])
    cu_seqlens = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    slice_ids = torch.tensor([[0], [1], [0]], dtype=torch.int32)
    sums = segment_loss(token_losses, torch.ones(3), cu_seqlens, slice_ids, 2)
    assert sums.document_losses.isnan().tolist() == [False, True, False]
    assert sums.slice_losses.isnan().tolist() == [False, True]


def test_a_documents_sum_ignores_its_neighbours_and_its_place_bitwise() -> None:
    token_losses, loss_weights, *_ = _inputs([1234], 0, 0)
    no_slices = torch.zeros(1, 0, dtype=torch.int32)
    alone = segment_loss(
        token_losses, loss_weights, torch.tensor([0, 1234], dtype=torch.int32), no_slices, 0
    )
    packed = segment_loss(
        torch.cat([torch.full((77,), 1e9), token_losses, torch.full((5,), -3.0)]),
        torch.cat([torch.ones(77), loss_weights, torch.ones(5)]),
        torch.tensor([0, 77, 1311, 1316], dtype=torch.int32),
        no_slices.expand(3, 0),
        0,
    )
    assert packed.document_losses[1].equal(alone.document_losses[0])


def _gradient(inputs: Inputs, function=segment_loss) -> torch.Tensor:
    token_losses = inputs[0].clone().requires_grad_()
    sums = function(token_losses, *inputs[1:])
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (torch.rand(len(losses), generator=generator, dtype=torch.float64) * losses).sum()
        for losses in (sums.document_losses, sums.slice_losses)
    )
    assert isinstance(total, torch.Tensor)
    return torch.autograd.grad(total, token_losses)[0]


@pytest.mark.parametrize(("num_columns", "num_slices"), [(0, 0), (2, 0), (1, 3), (4, 5)])
def test_the_gradient_equals_that_of_the_reference(num_columns: int, num_slices: int) -> None:
    inputs = _inputs([300, 0, 7, 40, 1], num_columns, max(num_slices, 1))
    if num_slices == 0:
        inputs = (*inputs[:3], torch.full_like(inputs[3], -1), 0)
    torch.testing.assert_close(_gradient(inputs), _gradient(inputs, segment_loss_reference))


def test_the_gradient_at_positions_without_weight_is_zero_whatever_stands_there() -> None:
    inputs = _inputs([300, 7, 0, 40], 2, 3)
    gradient = _gradient(_with_nan(inputs))
    assert gradient.equal(_gradient(inputs))
    assert (gradient[inputs[1] <= 0] == 0).all() and (gradient[inputs[1] > 0] != 0).all()
    token_losses = inputs[0].clone().requires_grad_()
    sums = segment_loss(token_losses, *inputs[1:])
    sums.document_losses.backward(torch.full((4,), math.nan, dtype=torch.float64))
    assert token_losses.grad is not None
    assert torch.equal(token_losses.grad.isnan(), inputs[1] > 0)


def test_the_gradient_of_one_output_alone() -> None:
    inputs = _inputs([3, 4], 1, 2)
    token_losses = inputs[0].clone().requires_grad_()
    segment_loss(token_losses, *inputs[1:]).document_losses.sum().backward()
    assert token_losses.grad is not None
    assert torch.equal(token_losses.grad, torch.where(inputs[1] > 0, inputs[1], 0.0))


def test_faulty_inputs_are_rejected() -> None:
    token_losses, loss_weights, cu_seqlens, slice_ids, num_slices = _inputs([3, 4], 2, 3)
    with pytest.raises(DsmError, match=r"token_losses is one row of torch\.float32"):
        segment_loss(token_losses.double(), loss_weights, cu_seqlens, slice_ids, num_slices)
    with pytest.raises(DsmError, match="loss_weights has an entry for each of 7 tokens, found 6"):
        segment_loss(token_losses, loss_weights[1:], cu_seqlens, slice_ids, num_slices)
    with pytest.raises(DsmError, match="from 0 to 7, found 2 entries from 0 to 3"):
        segment_loss(token_losses, loss_weights, cu_seqlens[:2], slice_ids[:1], num_slices)
    with pytest.raises(DsmError, match=r"a row for each of 2 documents, found .*int32 \(1, 2\)"):
        segment_loss(token_losses, loss_weights, cu_seqlens, slice_ids[:1], num_slices)
    with pytest.raises(DsmError, match=r"a row for each of 2 documents, found torch\.int64"):
        segment_loss(token_losses, loss_weights, cu_seqlens, slice_ids.long(), num_slices)
    with pytest.raises(DsmError, match="num_slices is 0 to"):
        segment_loss(token_losses, loss_weights, cu_seqlens, slice_ids, -1)


def test_a_gradient_for_the_weights_is_refused() -> None:
    inputs = _inputs([3, 4], 2, 3)
    inputs[1].requires_grad_()
    with pytest.raises(DsmError, match=r"no gradient for loss_weights.*loss_weights\.detach\(\)"):
        segment_loss(*inputs)
    with torch.no_grad():
        assert not segment_loss(*inputs).document_losses.requires_grad


@pytest.mark.parametrize("slice_id", [-2, 3])
def test_slice_ids_out_of_range_are_rejected(slice_id: int) -> None:
    *inputs, slice_ids, num_slices = _inputs([3, 4], 2, 3)
    slice_ids[1, 0] = slice_id
    with pytest.raises(DsmError, match=f"an index below 3, found {slice_id} at document 1"):
        segment_loss(*inputs, slice_ids, num_slices)


def test_strided_inputs_are_read_as_they_are() -> None:
    inputs = _inputs([30, 0, 5], 2, 3)
    strided = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in inputs[:4]]
    for expected, found in zip(segment_loss(*inputs), segment_loss(*strided, 3), strict=True):
        assert torch.equal(expected, found)


def test_the_operator_passes_opcheck() -> None:
    token_losses, *rest = _inputs([3, 0, 4], 2, 3)
    result = torch.library.opcheck(
        torch.ops.dsm.segment_loss.default, (token_losses.requires_grad_(), *rest)
    )
    assert set(result.values()) == {"SUCCESS"}


def test_the_operator_and_its_gradient_compile_without_a_graph_break() -> None:
    inputs = _inputs([3, 0, 4], 2, 3)
    compiled = torch.compile(segment_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(_gradient(inputs, compiled), _gradient(inputs))


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="segment_loss: CUDA error"):
        cuda_core.segment_loss(0, 0, 16, 0, 2, 0, 1, 3, 0, 0, 0, 0, 0)
