"""The loss contract: a sum over supervised tokens, and their integer count."""

import torch
from torch import Tensor


def supervised_loss(token_losses: Tensor, loss_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses of supervised tokens and their number; both inputs [1, T].

    Unsupervised positions are selected away, not multiplied by zero: a NaN there stays out of the
    sum (its gradient, zero times the model's own NaN, does not: the gradient norm shows it).
    Returns (fp32 scalar, int32 scalar).
    """
    supervised = loss_weights > 0
    weighted = torch.where(supervised, token_losses.float() * loss_weights, 0.0)
    return weighted.sum(), supervised.sum().to(torch.int)
