"""What Megatron's optimizer and gradient buffers are asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.training.config import OptimizationConfig
from dsm_engine.training.optimizer import gradient_buffers, megatron_adamw

TRAINING = OptimizationConfig(steps=1, global_batch_size=1, lr=3e-4, adam_beta2=0.9)


@pytest.mark.parametrize(("device", "offloaded"), [("cuda", True), ("cpu", False)])
def test_states_are_offloaded_to_the_host_where_the_device_is_another(
    one_rank: Any, device: str, offloaded: bool
) -> None:
    context = replace(one_rank, device=torch.device(device))
    for asked in (True, False):
        parallel = ParallelConfig(optimizer_cpu_offload=asked)
        config = megatron_adamw(TRAINING, parallel, context)
        assert config.optimizer_cpu_offload is (asked and offloaded)
        assert config.optimizer_offload_fraction == (1.0 if asked and offloaded else 0.0)
    assert (config.lr, config.adam_beta2, config.decoupled_weight_decay) == (3e-4, 0.9, True)


def test_gradients_are_summed_in_fp32_and_overlap_where_the_recipe_says_so() -> None:
    plain = gradient_buffers(ParallelConfig())
    assert plain.grad_reduce_in_fp32 and plain.use_distributed_optimizer
    assert not plain.overlap_grad_reduce and not plain.overlap_param_gather
    both = gradient_buffers(ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True))
    assert both.overlap_grad_reduce and both.overlap_param_gather
    replicated = gradient_buffers(ParallelConfig(use_distributed_optimizer=False))
    assert not replicated.use_distributed_optimizer
