"""One pack through the stages of the model, by the schedule that training has."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.step import forward_step
from dsm_engine.training.stream import MicroBatch, share_of_rank


def run_through_stages(
    chunks: Sequence[GPTModel], batch: MicroBatch, context: ParallelContext, *, gradients: bool
) -> Tensor:
    """Runs a whole pack through the model; every rank that holds a part of it (TP, PP, CP) calls
    it with the same pack.

    With `gradients`, those of the sum of supervised losses are added to `grad` of this rank's
    parameters, as far as its own tokens give them. Returns fp64 [4], the first four of `LossSum`:
    those of this rank's tokens on the last stage, elsewhere 0.
    """
    share = share_of_rank(batch, context)
    micro_batches = [share]
    if context.vp_size > 1:
        # An interleaved pipeline takes them in groups of PP; the others have no loss.
        micro_batches += [without_loss(share)] * (context.pp_size - 1)
    iterators = itertools.tee(micro_batches, len(chunks))
    with torch.set_grad_enabled(gradients):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=list(iterators) if len(chunks) > 1 else iterators[0],
            model=list(chunks),
            num_microbatches=len(micro_batches),
            seq_length=batch.tokens.size(1),
            micro_batch_size=1,
            forward_only=not gradients,
        )
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    for report in reports:
        sums += report["sums"][:4]
    return sums


def without_loss(batch: MicroBatch) -> MicroBatch:
    """The same pack, which the loss of the step does not count."""
    divisor = None if batch.divisor is None else torch.zeros_like(batch.divisor)
    return replace(batch, loss_weights=torch.zeros_like(batch.loss_weights), divisor=divisor)
