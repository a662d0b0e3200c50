"""One forward and backward pass over micro-batches, and one optimizer step."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
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
    token_losses: tuple[Tensor, ...] = ()
    """Of this rank's micro-batches, [1, T] each; none on ranks without the output layer."""
    votes: float = 0.0
    """What the ranks voted, in all."""

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
    vote: float = 0.0,
) -> LossSum:
    """Runs this rank's micro-batches through its chunks; the sum returned is that of all ranks, on
    every rank. `micro_batches` are those of `PackStream`, the same on all stages. `vote` goes to
    all ranks with the sums.

    Afterwards, unless `forward_only`, the gradient buffers hold the gradient of the mean over
    the supervised tokens of the global batch.
    """
    # An interleaved schedule asks for a micro-batch once for each chunk.
    iterators = itertools.tee(micro_batches, len(chunks))
    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=list(iterators) if len(chunks) > 1 else iterators[0],
            model=list(chunks),
            num_microbatches=num_micro_batches,
            seq_length=seq_length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
    sums = torch.zeros(3, dtype=torch.float64, device=context.device)
    if context.tp_rank == 0:  # tensor-parallel ranks have the same loss
        for report in reports:
            sums[:2] += report["loss_sum_and_tokens"]
    sums[2] = vote
    dist.all_reduce(sums)  # only the last stage has a loss; the others add zero
    total, num_tokens, votes = sums.tolist()
    return LossSum(
        total=total,
        num_tokens=int(num_tokens),
        token_losses=tuple(report["token_losses"] for report in reports),
        votes=votes,
    )


def optimizer_step(
    optimizer: MegatronOptimizer,
    context: ParallelContext,
    *,
    refuses: Callable[[float], bool] = lambda grad_norm: False,
) -> float:
    """Clips, moves the weights, and returns the gradient norm before clipping.

    Where `refuses` says so of that norm, neither weights nor moments have been touched. These are
    the stages of ChainedOptimizer.step, in its order.
    """
    with context.megatron_scope():
        overflowed = optimizer.prepare_grads()
        assert not overflowed, "only a loss scaler finds overflows, and there is none"
        grad_norm = float(cast(Any, optimizer.get_grad_norm()))
        if refuses(grad_norm):
            return grad_norm
        for member in getattr(optimizer, "chained_optimizers", [optimizer]):
            parameters = [] if member.is_stub_optimizer else member.get_parameters()
            if parameters and member.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(
                    parameters, max_norm=member.config.clip_grad, total_norm=grad_norm
                )
        optimizer.step_with_ready_grads()
    return grad_norm


def _forward_step(micro_batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
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
    reports = {"loss_sum_and_tokens": report, "token_losses": token_losses.detach()}
    return loss_sum, num_tokens, reports
