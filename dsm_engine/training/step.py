"""One forward and backward pass over micro-batches, and one optimizer step."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from dsm_engine.model.loss import supervised_loss
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.stream import MicroBatch


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """Loss over the supervised tokens of a global batch."""

    total: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Loss a supervised token (nats)."""
        return self.total / max(self.num_tokens, 1)


def forward_backward(
    chunks: Sequence[torch.nn.Module],
    micro_batches: Iterator[MicroBatch],
    *,
    num_micro_batches: int,
    seq_length: int,
    context: ParallelContext,
    forward_only: bool = False,
) -> LossSum:
    """Runs this rank's micro-batches through its chunks; the sum returned is that of all ranks, on
    every rank. `micro_batches` are those of `PackStream`, the same on all stages.

    Afterwards, unless `forward_only`, the gradient buffers hold the gradient of the mean over
    the supervised tokens of the global batch.
    """
    # An interleaved schedule asks for a micro-batch once for each chunk.
    iterators = itertools.tee(micro_batches, len(chunks))
    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=list(iterators) if len(chunks) > 1 else iterators[0],
            model=list(chunks),
            num_microbatches=num_micro_batches,
            seq_length=seq_length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)
    for report in reports:
        sums += report["loss_sum_and_tokens"].double()
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if context.pp_size > 1:  # only the last stage has a loss; the others added zero
        dist.all_reduce(sums, group=parallel_state.get_pipeline_model_parallel_group())
    total, num_tokens = sums.tolist()
    return LossSum(total=total, num_tokens=int(num_tokens))


def optimizer_step(optimizer: MegatronOptimizer, context: ParallelContext) -> float:
    """Clips, moves the weights, and returns the gradient norm before clipping."""
    with context.megatron_scope():
        _, grad_norm, _ = cast(Any, optimizer.step())  # annotated as returning nothing
    return float(grad_norm)


def forward_step(micro_batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
    """What Megatron's schedules ask for: a micro-batch's output, and the function that makes its
    loss sum, number of tokens and report of it on the last stage."""
    batch = next(micro_batches)
    output = model(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    return output, partial(_loss_and_report, batch.loss_weights)


def _loss_and_report(
    loss_weights: Tensor, token_losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss_sum, num_tokens = supervised_loss(token_losses, loss_weights)
    report = torch.stack([loss_sum.detach().double(), num_tokens.double()])
    return loss_sum, num_tokens, {"loss_sum_and_tokens": report}
