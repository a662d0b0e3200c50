"""What one forward and backward pass over a pack computes, and deterministic mode around it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from dsm_engine.model.gpt import named_shards
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.isolation.schedule import run_through_stages
from dsm_engine.training.stream import MicroBatch

LOSSES = "losses"
LOGITS = "logits"
KEYS = "rotated keys"
STAGE_INPUTS = "stage inputs"
INPUT_GRADIENTS = "input gradients"
PARAMETER_GRADIENTS = "parameter gradients"
KINDS = (LOSSES, LOGITS, KEYS, STAGE_INPUTS, INPUT_GRADIENTS, PARAMETER_GRADIENTS)


@dataclass(frozen=True, kw_only=True)
class TokenNumbers:
    """Numbers of one kind, some a token: those of the tokens this rank computes."""

    values: Tensor  # [tokens, ...]
    slots: Tensor  # int64 [tokens] on the host: where in the pack the tokens stand, rising

    def of(self, start: int, end: int) -> Tensor:
        """Those of the pack's tokens [start, end) that are here."""
        first, last = torch.searchsorted(self.slots, torch.tensor([start, end])).tolist()
        return self.values[first:last]

    def has(self, slot: int) -> bool:
        """Whether the pack's token there is here."""
        return len(self.of(slot, slot + 1)) > 0


@dataclass(frozen=True, kw_only=True)
class PassNumbers:
    """What one pass computes on this rank: its stage, shard and tokens."""

    tokens: dict[str, TokenNumbers]
    """By kind. Of each of the stage's chunks: what it gets from the embedding or from the stage
    before, [tokens, chunks, hidden]; of a backward pass, the gradients of that; the keys of its
    first layer, [tokens, chunks, groups / TP, head_dim]. Of the last stage: losses [tokens] and
    logits [tokens, vocabulary / TP]. Rotary embeddings give attention differences of positions
    only, so positions that do not begin at 0 would change little more than roundings but for the
    keys."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Gradients by the parameter's name in the whole model; empty without a backward pass."""


def run_pass(
    chunks: Sequence[GPTModel],
    batch: MicroBatch,
    context: ParallelContext,
    *,
    gradients: bool,
    loss_weights: Tensor | None = None,
) -> PassNumbers:
    """Runs a whole pack through the model; every rank that holds a part of it (TP, PP, CP) calls
    it with the same pack.

    The gradients are those of the sum of supervised losses, by `loss_weights` (the batch's own by
    default).
    """
    if loss_weights is not None:
        batch = replace(batch, loss_weights=loss_weights)
    captures = [_Capture() for _ in chunks]
    with contextlib.ExitStack() as stack:
        for chunk, capture in zip(chunks, captures, strict=True):
            stack.enter_context(capture.of(chunk, gradients=gradients))
        run_through_stages(chunks, batch, context, gradients=gradients)
    return PassNumbers(
        tokens=_token_numbers(captures, batch, context, gradients=gradients),
        parameters=take_gradients(chunks, context) if gradients else {},
    )


def take_gradients(chunks: Sequence[GPTModel], context: ParallelContext) -> dict[str, Tensor]:
    """This rank's gradients by the parameter's name in the whole model, summed over the ranks that
    share the tokens (SP, CP); they are taken off the parameters."""
    gradients: dict[str, Tensor] = {}
    for shard in (shard for chunk in chunks for shard in named_shards(chunk, context)):
        parameter = shard.parameter
        assert parameter.grad is not None, shard.name
        gradients[shard.name], parameter.grad = parameter.grad, None
        if getattr(parameter, "sequence_parallel", False):
            group = parallel_state.get_tensor_model_parallel_group()
            dist.all_reduce(gradients[shard.name], group=group)
        if context.cp_size > 1:
            group = parallel_state.get_context_parallel_group()
            dist.all_reduce(gradients[shard.name], group=group)
    return gradients


class _Capture:
    """What the first pass through a chunk leaves behind, by kind."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def of(self, chunk: GPTModel, *, gradients: bool) -> Iterator[None]:
        decoder: Any = chunk.decoder

        def keep_input(_: Any, arguments: Any, keywords: dict[str, Any]) -> None:
            given: Tensor = keywords["hidden_states"] if chunk.pre_process else decoder.input_tensor
            if self._keep(STAGE_INPUTS, given[:, 0]) and gradients:
                given.register_hook(
                    lambda gradient: self._keep(INPUT_GRADIENTS, gradient[:, 0]) and None
                )

        def keep_keys(_: Any, arguments: tuple[Tensor, ...]) -> None:
            self._keep(KEYS, arguments[1])

        def keep_logits(_: Any, arguments: Any, output: tuple[Tensor, Any]) -> None:
            self._keep(LOGITS, output[0][:, 0])

        def keep_losses(_: Any, arguments: Any, output: Tensor) -> None:
            self._keep(LOSSES, output[0])

        attention = decoder.layers[0].self_attention.core_attention
        handles = [
            decoder.register_forward_pre_hook(keep_input, with_kwargs=True),
            attention.register_forward_pre_hook(keep_keys),
        ]
        if chunk.post_process:
            handles.append(chunk.output_layer.register_forward_hook(keep_logits))
            handles.append(chunk.register_forward_hook(keep_losses))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, kind: str, values: Tensor) -> bool:
        """A copy, as what follows works in the tensor's place; whether it is the first."""
        if kind in self.values:
            return False
        self.values[kind] = values.detach().clone()
        return True


def _token_numbers(
    captures: list[_Capture], batch: MicroBatch, context: ParallelContext, *, gradients: bool
) -> dict[str, TokenNumbers]:
    width = batch.tokens.size(1)
    slots = torch.arange(width)
    if context.cp_size > 1:
        slots = batch.packed_seq_params.slots_of_ranks(context.cp_size)[context.cp_rank].cpu()

    def numbers(values: Tensor) -> TokenNumbers:
        parts = slots.split(len(values))  # sequence parallelism splits the tokens further
        return TokenNumbers(values=values, slots=parts[context.tp_rank if len(parts) > 1 else 0])

    tokens: dict[str, TokenNumbers] = {}
    for kind in (LOSSES, LOGITS):
        if kind in captures[-1].values:
            tokens[kind] = numbers(captures[-1].values[kind])
    for kind in (KEYS, STAGE_INPUTS, INPUT_GRADIENTS)[: 3 if gradients else 2]:
        values = [capture.values[kind] for capture in captures]
        tokens[kind] = numbers(torch.stack(values, dim=1))
    return tokens
