"""Faults that the isolation check must find, each put into a model from outside, and the attention
backends it is tried on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from dsm_engine.model.attention.packs import packed_sequences


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An attention backend of the CPU, and whether it has a backward pass."""

    name: str
    has_backward: bool = True


BACKENDS = [Backend(name="split"), Backend(name="dense")]
"""Every test of isolation runs on each of these."""


def shift_boundary(by: int) -> Callable[[Any], None]:
    """The second document ends so many tokens later (fewer: earlier)."""

    def change(lengths: tuple[int, ...]) -> tuple[int, ...]:
        return (lengths[0], lengths[1] + by, lengths[2] - by, *lengths[3:])

    return lambda gpt: _see_other_lengths(gpt, change)


def merge_tail_padding(gpt: Any) -> None:
    """The last document and the tail padding are one."""
    _see_other_lengths(gpt, lambda lengths: (*lengths[:-2], sum(lengths[-2:])))


def ignore_boundaries(gpt: Any) -> None:
    """One document as long as the pack."""
    _see_other_lengths(gpt, lambda lengths: (sum(lengths),))


def run_positions_on(gpt: Any) -> None:
    """Megatron-Core's RoPE counts through the pack where max_seqlen says that it is one
    document."""

    def see(_: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen = keywords["packed_seq_params"]
        whole = packed_sequences(seen.cu_seqlens_q, seen.lengths, sum(seen.lengths))
        return arguments, {**keywords, "packed_seq_params": whole}

    gpt.register_forward_pre_hook(see, with_kwargs=True)


def leak_the_mean(gpt: Any) -> None:
    """A ten-millionth of the pack's mean is added to every hidden state."""

    def leak(_: Any, arguments: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        hidden, context = output
        return hidden + 1e-7 * hidden.mean(0, keepdim=True), context

    gpt.decoder.layers[0].register_forward_hook(leak)


def leak_backwards(gpt: Any) -> None:
    """The forward pass is right; gradients get a thousandth of the pack's mean."""

    def leak(_: Any, arguments: Any, output: tuple[Tensor, Any]) -> None:
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: gradient + 1e-3 * gradient.mean(0, True))

    gpt.decoder.layers[0].register_forward_hook(leak)


def add_noise(gpt: Any) -> None:
    """Other numbers in every pass."""

    def add(_: Any, arguments: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        hidden, context = output
        return hidden + 0.01 * torch.randn_like(hidden), context

    gpt.decoder.layers[0].register_forward_hook(add)


def ignore_tokens(gpt: Any) -> None:
    """Every token is the first of the vocabulary."""
    gpt.register_forward_pre_hook(
        lambda _, arguments: (torch.zeros_like(arguments[0]), *arguments[1:])
    )


def drop_boundaries_on_a_middle_stage(gpt: Any) -> None:
    """The second pipeline stage gets no packed_seq_params: one document as long as the pack."""
    if parallel_state.get_pipeline_model_parallel_rank() == 1:
        gpt.register_forward_pre_hook(
            lambda _, arguments, keywords: (arguments, {**keywords, "packed_seq_params": None}),
            with_kwargs=True,
        )


def merge_on_a_middle_stage(gpt: Any) -> None:
    """The second pipeline stage sees the second and third document as one."""
    if parallel_state.get_pipeline_model_parallel_rank() == 1:
        _see_other_lengths(gpt, lambda lengths: (lengths[0], sum(lengths[1:3]), *lengths[3:]))


def merge_on_a_context_parallel_rank(gpt: Any) -> None:
    """The second rank that shares the tokens sees the second and third document as one."""
    if parallel_state.get_context_parallel_rank() == 1:
        _see_other_lengths(gpt, lambda lengths: (lengths[0], sum(lengths[1:3]), *lengths[3:]))


def leak_on_the_last_stage(gpt: Any) -> None:
    """Gradients get a thousandth of the pack's mean in the last stage, on their way back."""
    if parallel_state.is_pipeline_last_stage():
        leak_backwards(gpt)


FAULTS: dict[str, Callable[[Any], None]] = {
    "boundary one late": shift_boundary(1),
    "boundary one early": shift_boundary(-1),
    "tail padding merged": merge_tail_padding,
    "boundaries ignored": ignore_boundaries,
    "mean leaks": leak_the_mean,
    "gradients leak": leak_backwards,
}
"""Those that make a document's numbers depend on its neighbours' tokens."""

FAULTS_OF_RANKS: dict[str, Callable[[Any], None]] = {
    "boundaries dropped on a middle stage": drop_boundaries_on_a_middle_stage,
    "documents merged on a middle stage": merge_on_a_middle_stage,
    "documents merged on a context-parallel rank": merge_on_a_context_parallel_rank,
    "gradients leak on the last stage": leak_on_the_last_stage,
}
"""Those of some ranks alone."""


def _see_other_lengths(gpt: Any, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> None:
    def see(_: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen = keywords["packed_seq_params"]
        if len(seen.lengths) < 3:  # a document alone, padded where SP asks for it
            return arguments, keywords
        lengths = change(seen.lengths)
        ends = torch.tensor([0, *lengths]).cumsum(0).to(seen.cu_seqlens_q)
        other = packed_sequences(ends, lengths, max(lengths))
        return arguments, {**keywords, "packed_seq_params": other}

    gpt.register_forward_pre_hook(see, with_kwargs=True)
