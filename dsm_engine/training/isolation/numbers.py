"""What one forward and backward pass over a pack computes, and deterministic mode around it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from dsm_engine.model.gpt import named_shards
from dsm_engine.model.loss import supervised_loss
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.stream import MicroBatch

LOSSES = "losses"
LOGITS = "logits"
KEYS = "rotated keys"
INPUT_GRADIENTS = "input gradients"
PARAMETER_GRADIENTS = "parameter gradients"
KINDS = (LOSSES, LOGITS, KEYS, INPUT_GRADIENTS, PARAMETER_GRADIENTS)


@dataclass(frozen=True, kw_only=True)
class TokenNumbers:
    """Numbers of one kind, some a token: those of the tokens this rank computes."""

    values: Tensor  # [tokens, ...]
    first_token: int = 0
    """Where in the pack the first of them stands: sequence parallelism splits the tokens."""

    def of(self, start: int, end: int) -> Tensor:
        """Those of the pack's tokens [start, end) that are here."""
        first = self.first_token
        return self.values[max(start - first, 0) : max(end - first, 0)]


@dataclass(frozen=True, kw_only=True)
class PassNumbers:
    """What one pass computes on this rank: its shard of logits and parameters."""

    tokens: dict[str, TokenNumbers]
    """By kind: losses [T], logits [T, vocabulary / TP], the keys of the stage's first layer
    [T, groups / TP, head_dim], and, of a backward pass, the gradients of the stage's input
    [tokens, hidden]. Rotary embeddings give attention differences of positions only, so positions
    that do not begin at 0 would change little more than roundings but for the keys."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Gradients by the parameter's name in the whole model; empty without a backward pass."""


def run_pass(
    gpt: GPTModel,
    batch: MicroBatch,
    context: ParallelContext,
    *,
    gradients: bool,
    loss_weights: Tensor | None = None,
) -> PassNumbers:
    """Runs the pack through this rank's model; every rank of the TP group calls it.

    The gradients are those of the sum of supervised losses, by `loss_weights` (the batch's own by
    default).
    """
    with _captured(gpt) as captured, torch.set_grad_enabled(gradients):
        losses = gpt(
            batch.tokens,
            batch.position_ids,
            None,
            labels=batch.labels,
            packed_seq_params=batch.packed_seq_params,
        )
    tokens = {
        LOSSES: TokenNumbers(values=losses.detach()[0]),
        LOGITS: TokenNumbers(values=captured["logits"][:, 0]),
        KEYS: TokenNumbers(values=captured["keys"]),
    }
    if not gradients:
        return PassNumbers(tokens=tokens)
    weights = batch.loss_weights if loss_weights is None else loss_weights
    loss, _ = supervised_loss(losses, weights)
    shards = list(named_shards(gpt, context))
    stage_input = captured["input"]
    input_gradient, *parameter_gradients = torch.autograd.grad(
        loss, [stage_input, *(shard.parameter for shard in shards)]
    )
    split = input_gradient.size(0) < batch.tokens.size(1)
    tokens[INPUT_GRADIENTS] = TokenNumbers(
        values=input_gradient[:, 0],
        first_token=context.tp_rank * input_gradient.size(0) if split else 0,
    )
    parameters = {}
    for shard, gradient in zip(shards, parameter_gradients, strict=True):
        # Each rank has seen its part of the tokens only.
        if getattr(shard.parameter, "sequence_parallel", False):
            dist.all_reduce(gradient, group=parallel_state.get_tensor_model_parallel_group())
        parameters[shard.name] = gradient
    return PassNumbers(tokens=tokens, parameters=parameters)


@contextlib.contextmanager
def deterministic_mode() -> Iterator[None]:
    """Within it torch takes deterministic algorithms only, or says that it has none."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS is deterministic with workspaces of a fixed size only; torch asks for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@contextlib.contextmanager
def _captured(gpt: GPTModel) -> Iterator[dict[str, Tensor]]:
    """What the forward pass within leaves behind: the stage's input, [tokens, 1, hidden], the
    first layer's keys, [T, groups / TP, head_dim], and the logits, [T, 1, vocabulary / TP]."""
    captured: dict[str, Tensor] = {}

    def keep_input(_: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        captured["input"] = keywords["hidden_states"]

    def keep_keys(_: Any, arguments: tuple[Tensor, ...]) -> None:
        captured["keys"] = arguments[1].detach()

    def keep_logits(_: Any, arguments: Any, output: tuple[Tensor, Any]) -> None:
        captured["logits"] = output[0].detach().clone()  # the loss works in their place

    decoder: Any = gpt.decoder
    handles = [
        decoder.register_forward_pre_hook(keep_input, with_kwargs=True),
        decoder.layers[0].self_attention.core_attention.register_forward_pre_hook(keep_keys),
        gpt.output_layer.register_forward_hook(keep_logits),
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
