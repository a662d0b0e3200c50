"""Megatron's data-parallel wrapper and optimizer over one stage of the model."""

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
    gpt: GPTModel,
    training: OptimizationConfig,
    parallel: ParallelConfig,
    context: ParallelContext,
) -> tuple[DistributedDataParallel, MegatronOptimizer]:
    """Gradient buffers (fp32) and AdamW for `gpt`; states sharded where the recipe says so."""
    model = DistributedDataParallel(
        gpt.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=parallel.use_distributed_optimizer,
        ),
        gpt,
    )
    config = OptimizerConfig(
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
    )
    with context.megatron_scope():
        optimizer = get_megatron_optimizer(config, [model])
    model_config: Any = gpt.config
    model_config.finalize_model_grads_func = finalize_model_grads
    model_config.grad_scale_func = optimizer.scale_loss
    return model, optimizer


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
