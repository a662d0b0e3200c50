"""One forward and backward pass over micro-batches, and one optimizer step."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from dsm_engine.model.loss import supervised_loss
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.slices import slice_sums
from dsm_engine.training.stream import MicroBatch


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """Losses over the supervised tokens of a global batch."""

    weighted_total: float
    """Of weight * loss; what is minimized is this over `divisor` (training/weighting.py)."""
    divisor: int
    total: float
    """Of the losses themselves; the same, where every token counts alike."""
    num_tokens: int
    slice_sums: tuple[float, ...] = ()
    """Losses and then counts by slice, as `SliceTable.losses` takes them."""
    token_losses: tuple[Tensor, ...] = ()
    """Of this rank's micro-batches, [1, T] each; none on ranks without the output layer."""
    votes: float = 0.0
    """What the ranks voted, in all."""

    @property
    def mean(self) -> float:
        """What is minimized (nats)."""
        return self.weighted_total / max(self.divisor, 1)

    @property
    def token_mean(self) -> float:
        """Loss a supervised token (nats)."""
        return self.total / max(self.num_tokens, 1)


def forward_backward(
    chunks: Sequence[torch.nn.Module],
    micro_batches: Iterator[MicroBatch],
    *,
    num_micro_batches: int,
    seq_length: int,
    context: ParallelContext,
    num_slices: int = 0,
    forward_only: bool = False,
    vote: float = 0.0,
) -> LossSum:
    """Runs this rank's micro-batches through its chunks; the sum returned is that of all ranks, on
    every rank. `micro_batches` are those of `PackStream`, the same on all stages, of `num_slices`
    slices. `vote` goes to all ranks with the sums.

    Afterwards, unless `forward_only`, the gradient buffers hold the gradient of `LossSum.mean`.
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
    sums = torch.zeros(5 + 2 * num_slices, dtype=torch.float64, device=context.device)
    if context.tp_rank == 0:  # tensor-parallel ranks have the same loss
        for report in reports:
            sums[:-1] += report["sums"]
    sums[-1] = vote
    dist.all_reduce(sums)  # only the last stage has a loss; the others add zero
    weighted_total, divisor, total, num_tokens, *slice_sums, votes = sums.tolist()
    return LossSum(
        weighted_total=weighted_total,
        divisor=int(divisor),
        total=total,
        num_tokens=int(num_tokens),
        slice_sums=tuple(slice_sums),
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
    return output, partial(_loss_and_report, batch)


def _loss_and_report(
    batch: MicroBatch, token_losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The weighted sum, its divisor, and a report on the device: all sums of `LossSum` in one row,
    those of the tokens alone, and the tokens' losses."""
    weights = batch.loss_weights
    weighted_sum, divisor = supervised_loss(token_losses, weights, batch.divisor)
    objective = torch.stack([weighted_sum.detach().double(), divisor.double()])
    tokens = objective
    if batch.divisor is not None:
        ones = (weights > 0).float()
        tokens = torch.stack([n.double() for n in supervised_loss(token_losses.detach(), ones)])
    sums = [objective, tokens]
    if batch.slice_ids is not None:
        # Each rank has an equal share of every document under context parallelism.
        cp_size = parallel_state.get_context_parallel_world_size()
        ends = batch.packed_seq_params.cu_seqlens_q // cp_size
        sums.append(slice_sums(token_losses, weights, ends, batch.slice_ids, batch.num_slices))
    reports = {
        "loss_sum_and_tokens": tokens,
        "sums": torch.cat(sums),
        "token_losses": token_losses.detach(),
    }
    return weighted_sum, divisor, reports
