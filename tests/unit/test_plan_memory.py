"""The plan's activations against what autograd keeps, and its peak against a counted one."""

from typing import Any

import pytest

from dsm_engine.model.config import ModelConfig
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.planning.activations import (
    head_activations,
    layer_activations,
    micro_batch,
    micro_batches_in_flight,
)
from dsm_engine.planning.memory import memory_by_stage, pass_working_set, worst_stage
from tests.live_memory import LiveBytes, SavedBytes

NUM_TOKENS = 256
LENGTHS = (100, NUM_TOKENS - 100)


def _model(num_layers: int, num_groups: int = 2, vocab_size: int = 512) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=64,
        num_attention_heads=8,
        num_query_groups=num_groups,
        ffn_hidden_size=160,
        vocab_size=vocab_size,
    )


def _forward(gpt: Any, model: ModelConfig) -> Any:
    import torch

    from dsm_engine.model.attention.packs import packed_sequences

    tokens = torch.randint(0, model.vocab_size, (1, NUM_TOKENS))
    cu_seqlens = torch.tensor([0, LENGTHS[0], NUM_TOKENS], dtype=torch.int32)
    return gpt(
        tokens,
        torch.arange(NUM_TOKENS)[None],
        None,
        labels=tokens,
        packed_seq_params=packed_sequences(cu_seqlens, LENGTHS, max(LENGTHS)),
    )


def _kept_bytes(model: ModelConfig, parallel: ParallelConfig, precision: Any, context: Any) -> int:
    from dsm_engine.model.gpt import build_chunks, initialize_weights

    (gpt,) = build_chunks(model, parallel, precision, context, attention="split")
    initialize_weights([gpt], model, context, seed=0)
    with SavedBytes(gpt) as saved:
        _forward(gpt, model)
    return saved.total


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("precision", "num_groups"), [("fp32", 8), ("fp32", 2), ("bf16", 2)])
def test_a_layers_activations_are_what_autograd_keeps_to_the_byte(
    precision: Any, num_groups: int, recompute: Any, one_rank: Any
) -> None:
    parallel = ParallelConfig(recompute=recompute)
    two, one = (
        _kept_bytes(_model(num_layers, num_groups), parallel, precision, one_rank)
        for num_layers in (2, 1)
    )
    planned = layer_activations(
        _model(1, num_groups),
        parallel,
        micro_batch(parallel, precision, NUM_TOKENS),
        recompute=recompute,
        on_cpu=True,
    )
    assert two - one == planned.total


@pytest.mark.parametrize("vocab_size", [512, 8192])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_a_forward_and_backward_pass_is_the_planned_one_within_a_twentieth(
    precision: Any, recompute: Any, vocab_size: int, one_rank: Any
) -> None:
    """Of tensors beside weights, gradient buffers and optimizer; a large vocabulary puts the peak
    at the loss, a small one into the layers."""
    from dsm_engine.model.gpt import build_chunks, initialize_weights
    from dsm_engine.training.config import OptimizationConfig
    from dsm_engine.training.optimizer import wrap_for_training

    model = _model(6, vocab_size=vocab_size)
    parallel = ParallelConfig(recompute=recompute)
    training = OptimizationConfig(steps=1, global_batch_size=1, lr=1e-3, precision=precision)
    chunks = build_chunks(model, parallel, precision, one_rank, attention="split")
    initialize_weights(chunks, model, one_rank, seed=0)
    (wrapped,), _ = wrap_for_training(chunks, training, parallel, one_rank)
    wrapped.zero_grad_buffer()
    with LiveBytes() as live:
        _forward(wrapped, model).sum().backward()
    batch = micro_batch(parallel, precision, NUM_TOKENS)
    layer = layer_activations(model, parallel, batch, recompute=recompute, on_cpu=True)
    planned = 6 * layer.total + head_activations(model, parallel, batch).kept
    planned += pass_working_set(model, parallel, batch, is_last=True, on_cpu=True)
    assert planned == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("num_micro_batches", [2, 4, 12])
@pytest.mark.parametrize(("pp", "vp"), [(1, 1), (2, 1), (4, 1), (2, 2), (2, 4), (4, 3)])
def test_micro_batches_in_flight_are_megatrons_warm_up_and_one(
    pp: int, vp: int, num_micro_batches: int
) -> None:
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

    parallel = ParallelConfig(
        pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vp
    )
    for stage in range(pp):
        megatron: Any = _Communicator(stage, pp, vp)
        total, _, warm_up, _ = get_pp_rank_microbatches(
            num_micro_batches, vp, pp, p2p_communicator=megatron
        )
        planned = micro_batches_in_flight(
            parallel, stage=stage, num_micro_batches=num_micro_batches
        )
        assert planned == min(total, warm_up + 1)


class _Communicator:
    """What Megatron asks of a pipeline group."""

    def __init__(self, rank: int, size: int, vp: int) -> None:
        self.pp_group = self
        self.rank = lambda: rank
        self.size = lambda: size
        self.virtual_pipeline_model_parallel_size = vp if vp > 1 else None


DEEPSEEKMATH = ModelConfig(
    num_layers=30,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=32,
    ffn_hidden_size=11008,
    vocab_size=102400,
)


def _worst(**parallel: Any) -> Any:
    config = ParallelConfig(**parallel)
    stages = memory_by_stage(
        DEEPSEEKMATH,
        config,
        "bf16",
        seq_length=4096,
        num_micro_batches=32,
        dp_size=64 // config.model_parallel_size,
        overhead=0,
    )
    return worst_stage(stages)


def test_static_memory_of_the_papers_model_on_one_gpu_is_18_bytes_a_parameter() -> None:
    """Weight 2, gradient 4, main weight 4, moments 8: 115.8 GiB."""
    (stage,) = memory_by_stage(
        DEEPSEEKMATH,
        ParallelConfig(use_distributed_optimizer=False),
        "bf16",
        seq_length=4096,
        num_micro_batches=1,
        dp_size=1,
        overhead=0,
    )
    static = stage.weights + stage.gradients + stage.optimizer
    assert static == 18 * DEEPSEEKMATH.num_parameters


def test_memory_falls_with_tp_pp_cp_and_recompute() -> None:
    plain = _worst()
    for smaller in (
        {"tensor_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 2},
        {"context_parallel_size": 2},
        {"recompute": "selective"},
    ):
        assert _worst(**smaller).total < plain.total, smaller
    assert _worst(recompute="full").total < _worst(recompute="selective").total
    tp = {"tensor_model_parallel_size": 4}
    assert _worst(**tp, sequence_parallel=True).activations < _worst(**tp).activations


def test_the_first_stage_keeps_more_micro_batches_and_the_last_the_logits() -> None:
    stages = memory_by_stage(
        DEEPSEEKMATH,
        ParallelConfig(pipeline_model_parallel_size=5),
        "bf16",
        seq_length=4096,
        num_micro_batches=32,
        dp_size=1,
        overhead=0,
    )
    assert [stage.micro_batches_in_flight for stage in stages] == [5, 4, 3, 2, 1]
    assert stages[0].activations > stages[1].activations > stages[3].activations
    assert stages[4].working_set > stages[0].working_set
    assert stages[0].components["embedding"] and not stages[1].components["embedding"]
    assert stages[4].components["head"] and not stages[3].components["head"]


def test_offloading_the_optimizer_moves_16_bytes_a_parameter_to_the_host() -> None:
    here, there = _worst(), _worst(optimizer_cpu_offload=True)
    shard = here.optimizer // 12
    assert there.host_optimizer == 16 * shard
    assert there.optimizer == 4 * shard  # the main weights' device copy
    assert here.host_optimizer == 0
