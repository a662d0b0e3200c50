"""dsm::segment_loss: the loss of a pack by document and by slice (source, language, topic, ...)."""

from typing import Any, NamedTuple

import torch

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_num_tokens,
    check_one_device,
    check_row,
    cuda_launcher,
    library,
    with_stream,
)


class SegmentLoss(NamedTuple):
    """D is the number of documents of the pack, empty ones included, S that of slices."""

    document_losses: torch.Tensor
    """float64 [D], sum of loss * weight over the document's positions of a weight above 0"""
    document_counts: torch.Tensor
    """int64 [D], number of those positions"""
    slice_losses: torch.Tensor
    """float64 [S], sum over the documents that name the slice"""
    slice_counts: torch.Tensor
    """int64 [S], likewise"""


def segment_loss(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> SegmentLoss:
    """Sums of loss and counts of positions, in an order of additions that is always the same.

    token_losses and loss_weights are float32 [T], cu_seqlens is int32 [D + 1], from 0 to T without
    falling. slice_ids is int32 [D, K]: the slices a document is of, one a column, -1 for none; one
    that is named in two columns counts once.

    Positions whose weight is not above 0 are selected away, not multiplied by zero: a NaN there
    stays out of the sums, and the gradient there is 0 whatever the rest is. The sums are
    differentiable in token_losses alone: loss_weights that require a gradient raise DsmError. On
    the CPU so does a fault in cu_seqlens or a slice id outside [-1, num_slices); on CUDA neither is
    checked, and such ids are ignored.
    """
    return SegmentLoss(
        *torch.ops.dsm.segment_loss(token_losses, loss_weights, cu_seqlens, slice_ids, num_slices)
    )


def segment_loss_reference(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> SegmentLoss:
    """What `segment_loss` computes but for the order of additions, in plain torch."""
    counted = loss_weights > 0
    terms = torch.where(counted, token_losses.double() * loss_weights.double(), 0.0)
    lengths = cu_seqlens.diff().tolist()
    document_losses = torch.stack([part.sum() for part in terms.split(lengths)])
    document_counts = torch.stack([part.sum() for part in counted.split(lengths)])
    slices = torch.arange(num_slices, device=slice_ids.device)
    named = (slice_ids[:, :, None] == slices).any(1)  # [documents, slices]
    return SegmentLoss(
        document_losses,
        document_counts,
        torch.where(named, document_losses[:, None], 0.0).sum(0),
        torch.where(named, document_counts[:, None], 0).sum(0),
    )


library.define(
    "segment_loss(Tensor token_losses, Tensor loss_weights, Tensor cu_seqlens, Tensor slice_ids,"
    " SymInt num_slices) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(library, "segment_loss", "CPU")
def _segment_loss_cpu(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> SegmentLoss:
    inputs = _check(token_losses, loss_weights, cu_seqlens, slice_ids, num_slices)
    outputs = _empty_sums(*inputs, num_slices)
    _core.segment_loss(*_arguments(inputs, num_slices, outputs))
    return outputs


def _segment_loss_cuda(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> SegmentLoss:
    launch = cuda_launcher("segment_loss")
    inputs = _check(token_losses, loss_weights, cu_seqlens, slice_ids, num_slices)
    device = token_losses.device
    with torch.cuda.device(device):
        outputs = _empty_sums(*inputs, num_slices)
        launch(*with_stream(_arguments(inputs, num_slices, outputs), device))
    return outputs


_Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _check(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> _Inputs:
    op = "segment_loss"
    token_losses = check_row(op, "token_losses", token_losses, torch.float32)
    loss_weights = check_row(op, "loss_weights", loss_weights, torch.float32)
    cu_seqlens = check_cu_seqlens(op, cu_seqlens)
    if loss_weights.numel() != token_losses.numel():
        raise DsmError(
            f"dsm::{op}: loss_weights has an entry for each of {token_losses.numel()} tokens,"
            f" found {loss_weights.numel()}"
        )
    num_documents = cu_seqlens.numel() - 1
    if slice_ids.dtype != torch.int32 or slice_ids.dim() != 2 or slice_ids.size(0) != num_documents:
        raise DsmError(
            f"dsm::{op}: slice_ids is int32 with a row for each of {num_documents} documents,"
            f" found {slice_ids.dtype} {tuple(slice_ids.shape)}"
        )
    if not 0 <= num_slices < 1 << 31:
        raise DsmError(f"dsm::{op}: num_slices is 0 to 2^31 - 1, found {num_slices}")
    check_num_tokens(op, token_losses.numel())
    check_one_device(op, token_losses, loss_weights, cu_seqlens, slice_ids)
    return token_losses, loss_weights, cu_seqlens, slice_ids.contiguous()


def _arguments(inputs: _Inputs, num_slices: int, outputs: SegmentLoss) -> tuple[int, ...]:
    token_losses, loss_weights, cu_seqlens, slice_ids = inputs
    return (
        token_losses.data_ptr(),
        loss_weights.data_ptr(),
        token_losses.numel(),
        cu_seqlens.data_ptr(),
        slice_ids.size(0),
        slice_ids.data_ptr(),
        slice_ids.size(1),
        num_slices,
        *(output.data_ptr() for output in outputs),
    )


@torch.library.register_fake("dsm::segment_loss", lib=library)
def _empty_sums(
    token_losses: torch.Tensor,
    loss_weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    slice_ids: torch.Tensor,
    num_slices: int,
) -> SegmentLoss:
    num_documents = slice_ids.size(0)
    return SegmentLoss(
        token_losses.new_empty(num_documents, dtype=torch.float64),
        token_losses.new_empty(num_documents, dtype=torch.int64),
        token_losses.new_empty(num_slices, dtype=torch.float64),
        token_losses.new_empty(num_slices, dtype=torch.int64),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, loss_weights, cu_seqlens, slice_ids, ctx.num_slices = inputs
    if loss_weights.requires_grad:
        raise DsmError(
            "dsm::segment_loss: the sums have no gradient for loss_weights, which requires one:"
            " pass loss_weights.detach()"
        )
    ctx.save_for_backward(loss_weights, cu_seqlens, slice_ids)


def _backward(
    ctx: Any,
    document_gradients: torch.Tensor,
    _document_counts: Any,
    slice_gradients: torch.Tensor,
    _slice_counts: Any,
) -> tuple[torch.Tensor | None, ...]:
    loss_weights, cu_seqlens, slice_ids = ctx.saved_tensors
    named_before: list[torch.Tensor] = []
    for ids in slice_ids.unbind(1) if ctx.num_slices > 0 else ():
        counts = (ids >= 0) & (ids < ctx.num_slices)
        for before in named_before:
            counts &= ids != before
        named_before.append(ids)
        gradients = slice_gradients[ids.clamp(0, ctx.num_slices - 1).long()]
        document_gradients = document_gradients + torch.where(counts, gradients, 0.0)
    token_idx = torch.arange(loss_weights.size(0), dtype=torch.int32, device=loss_weights.device)
    document_ids = torch.searchsorted(cu_seqlens, token_idx, right=True) - 1
    # The clamp is for cu_seqlens with a fault, which CUDA does not see.
    of_tokens = document_gradients[document_ids.clamp(0, cu_seqlens.size(0) - 2)]
    gradient = torch.where(loss_weights > 0, of_tokens * loss_weights.double(), 0.0)
    return gradient.float(), None, None, None, None


torch.library.register_autograd(
    "dsm::segment_loss", _backward, setup_context=_save_for_backward, lib=library
)

library.impl("segment_loss", _segment_loss_cuda, "CUDA")
