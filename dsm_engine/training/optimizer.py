"""Megatron's data-parallel wrapper and optimizer over this rank's chunks of the model."""

from collections.abc import Sequence
from typing import Any

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)

from dsm_engine.model.gpt import DTYPES
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.config import OptimizationConfig


def wrap_for_training(
    chunks: Sequence[GPTModel],
    training: OptimizationConfig,
    parallel: ParallelConfig,
    context: ParallelContext,
) -> tuple[list[DistributedDataParallel], MegatronOptimizer]:
    """Gradient buffers (fp32) and AdamW for this rank's chunks; states sharded where the recipe
    says so."""
    wrapped = [
        DistributedDataParallel(
            chunk.config,
            gradient_buffers(parallel),
            chunk,
            # Later chunks are not in the way of the last backward pass: one bucket for each.
            disable_bucketing=chunk_idx > 0,
        )
        for chunk_idx, chunk in enumerate(chunks)
    ]
    with context.megatron_scope():
        any_chunks: Any = wrapped
        optimizer = get_megatron_optimizer(megatron_adamw(training, parallel, context), any_chunks)
    _install_hooks(wrapped, optimizer, parallel)
    context.closing.callback(_let_go, wrapped)
    return wrapped, optimizer


def gradient_buffers(parallel: ParallelConfig) -> DistributedDataParallelConfig:
    """How gradients are summed: in fp32, over the data-parallel and context-parallel ranks."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
    )


def megatron_adamw(
    training: OptimizationConfig, parallel: ParallelConfig, context: ParallelContext
) -> OptimizerConfig:
    """AdamW as Megatron takes it."""
    # On a CPU the states are in host memory already.
    offload = parallel.optimizer_cpu_offload and context.device.type == "cuda"
    return OptimizerConfig(
        optimizer="adam",
        lr=training.lr,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_eps,
        weight_decay=training.weight_decay,
        clip_grad=training.clip_grad,
        bf16=training.precision == "bf16",
        params_dtype=DTYPES[training.precision],
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
        optimizer_cpu_offload=offload,
        optimizer_offload_fraction=1.0 if offload else 0.0,
        use_torch_optimizer_for_cpu_offload=offload,
    )


def _install_hooks(
    chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer, parallel: ParallelConfig
) -> None:
    """What Megatron's schedules call; all chunks share one configuration."""
    config: Any = chunks[0].config
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if parallel.overlap_grad_reduce:
        hooks = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]


def _let_go(chunks: Sequence[DistributedDataParallel]) -> None:
    """Cuts the circles through autograd's nodes, which Python's collector does not see: the model,
    its buffers and the process groups, with their threads, would stay for good."""
    for chunk in chunks:
        chunk.grad_accs.clear()
        config: Any = chunk.config
        config.grad_scale_func = config.finalize_model_grads_func = config.no_sync_func = None


def sync_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """Gathers the parameters that the last step moved on other ranks.

    With overlap_param_gather they come with the next forward pass, and are stale until then.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def set_hyperparameters(
    optimizer: MegatronOptimizer, training: OptimizationConfig, *, lr: float
) -> None:
    """Gives every parameter group the recipe's values for the coming step.

    Before each step, because a loaded checkpoint brings the values it was saved with, and because
    Megatron's groups carry `wd_mult` (0 for norms) as a mark that only its own scheduler applies.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = training.weight_decay * group["wd_mult"]
        group["betas"] = (training.adam_beta1, training.adam_beta2)
        group["eps"] = training.adam_eps
