"""The gradient of a global batch: by the engine's own step, and summed document by document."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from dsm_engine.model.gpt import named_shards
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.gradients.splits import Split
from dsm_engine.training.isolation.numbers import take_gradients
from dsm_engine.training.isolation.schedule import run_through_stages
from dsm_engine.training.step import LossSum, forward_backward
from dsm_engine.training.stream import MicroBatch

_TIED = ("embedding.word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True, kw_only=True)
class BatchGradient:
    """Gradient of the loss of the batch, as training minimizes it, and its sums."""

    loss: LossSum
    parameters: dict[str, Tensor]
    """fp32, this rank's shards by name in the whole model: the whole batch's on every rank."""


def reference_gradient(
    chunks: Sequence[GPTModel],
    documents: Iterable[MicroBatch],
    context: ParallelContext,
    *,
    divisor: int,
    on_document: Callable[[], None] = lambda: None,
) -> BatchGradient:
    """This data-parallel rank's documents, each a whole pack by itself: their gradients as autograd
    gives them are added up, then those of all ranks, and divided once.

    The chunks are not wrapped for training: Megatron's gradient buffers and its final reductions
    have no part in it.
    """
    shards = [shard for chunk in chunks for shard in named_shards(chunk, context)]
    gradients = {
        shard.name: torch.zeros_like(shard.parameter, dtype=torch.float32) for shard in shards
    }
    sums = torch.zeros(4, dtype=torch.float64, device=context.device)
    for document in documents:
        sums += run_through_stages(chunks, document, context, gradients=True)
        for name, gradient in take_gradients(chunks, context).items():
            gradients[name] += gradient
        on_document()
    data_parallel = parallel_state.get_data_parallel_group()
    for gradient in gradients.values():
        dist.all_reduce(gradient, group=data_parallel)
        gradient /= divisor
    if chunks[0].share_embeddings_and_output_weights and context.pp_size > 1:
        # First and last stage hold the same matrix, and each has a part of its gradient.
        for name in _TIED:
            if name in gradients:
                dist.all_reduce(gradients[name], group=parallel_state.get_embedding_group())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.all_reduce(sums, group=parallel_state.get_pipeline_model_parallel_group())
    weighted_total, counted, total, num_tokens = sums.tolist()
    loss = LossSum(
        weighted_total=weighted_total,
        divisor=int(counted),
        total=total,
        num_tokens=int(num_tokens),
    )
    return BatchGradient(loss=loss, parameters=gradients)


def engine_gradient(
    chunks: Sequence[GPTModel],
    wrapped: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    split: Split,
    context: ParallelContext,
) -> BatchGradient:
    """The split's by the step that training takes, up to where the optimizer would read it;
    `wrapped` are the chunks with Megatron's gradient buffers.

    The gradients are views of the buffers: the next run overwrites them.
    """
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    loss = forward_backward(
        wrapped,
        split.micro_batches(),
        num_micro_batches=split.num_micro_batches,
        seq_length=split.width,
        context=context,
    )
    for chunk in wrapped:
        _gather_shards(chunk)
    return BatchGradient(
        loss=replace(loss, token_losses=()),  # sums are compared, and sent to other ranks
        parameters={
            shard.name: shard.parameter.main_grad  # pyright: ignore[reportAttributeAccessIssue]
            for chunk in chunks
            for shard in named_shards(chunk, context)
        },
    )


def _gather_shards(chunk: DistributedDataParallel) -> None:
    """Brings the reduced gradient to every data-parallel rank: a distributed optimizer reads, and
    so Megatron reduces, a part of each bucket on each."""
    if not chunk.ddp_config.use_distributed_optimizer:
        return
    group: Any = parallel_state.get_data_parallel_group(with_context_parallel=True)
    buffers: Any = chunk.buffers
    for buffer in buffers:
        for bucket in buffer.buckets:
            mine = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, mine, group=group)
