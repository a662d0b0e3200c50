"""The loss contract: a sum over supervised tokens, and the integer it is divided by."""

import torch
from torch import Tensor


def supervised_loss(
    token_losses: Tensor, loss_weights: Tensor, divisor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the losses of supervised tokens and its divisor; both inputs [1, T].

    Unsupervised positions are selected away, not multiplied by zero: a NaN there stays out of the
    sum (its gradient, zero times the model's own NaN, does not: the gradient norm shows it).
    `divisor` is int32 []: this share of what the sum over the step is divided by; default: the
    number of supervised tokens. Returns (fp32 scalar, int32 scalar).
    """
    supervised = loss_weights > 0
    weighted = torch.where(supervised, token_losses.float() * loss_weights, 0.0)
    if divisor is None:
        divisor = supervised.sum().to(torch.int)
    return weighted.sum(), divisor
