"""dsm::context_parallel_split: which token of a pack stands where on which rank.

Each document is padded to a multiple of 2 * cp_size and cut into so many equal chunks; rank r holds
chunks r and 2 * cp_size - 1 - r, document after document, so that all ranks have the same share of
causal attention. This is the order of Transformer Engine's thd_get_partitioned_indices.
"""

import itertools
from typing import NamedTuple

import torch

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_int,
    check_num_tokens,
    cuda_launcher,
    library,
    with_stream,
)

_MOST_RANKS = 1 << 16


class ContextParallelSplit(NamedTuple):
    """S = num_slots / cp_size slots a rank."""

    cu_seqlens_padded: torch.Tensor
    """int32 [num_entries], where the padded documents begin and end"""
    token_idx: torch.Tensor
    """int64 [cp_size, S], the token of the pack that a slot holds; -1 for padding"""
    position_ids: torch.Tensor
    """int64 [cp_size, S], position in the document, going on through its padding; the slots behind
    the last document are one more document, from 0"""
    inverse: torch.Tensor
    """int64 [num_tokens], where a token stands in token_idx.flatten()"""


def context_parallel_split(
    cu_seqlens: torch.Tensor, num_tokens: int, *, cp_size: int, num_slots: int
) -> ContextParallelSplit:
    """The slots of all ranks, from cu_seqlens int32 [num_entries], which runs from 0 to num_tokens
    without falling; entries that repeat num_tokens are padding.

    num_slots is a multiple of 2 * cp_size and holds the padded documents, which
    `context_parallel_slots` many always do. Faults raise DsmError; on CUDA neither cu_seqlens nor
    whether the slots suffice is checked: where they do not, `inverse` is num_slots for the tokens
    left out.
    """
    check_int("context_parallel_split", "num_tokens", num_tokens)
    return ContextParallelSplit(
        *torch.ops.dsm.context_parallel_split(cu_seqlens, num_tokens, cp_size, num_slots)
    )


def context_parallel_slots(num_tokens: int, num_documents: int, cp_size: int) -> int:
    """As many slots as any num_documents documents of num_tokens tokens may need.

    Padding adds up to 2 * cp_size - 1 to each document that has a token, and the sum is a multiple
    of 2 * cp_size. Numbers that are negative, and a cp_size of 0, raise DsmError.
    """
    function = "context_parallel_slots"
    _check_cp_size(function, cp_size)
    for name, number in (("num_tokens", num_tokens), ("num_documents", num_documents)):
        if number < 0:
            raise DsmError(f"{function}: {name} is 0 or more, found {number}")
    multiple = 2 * cp_size
    most = num_tokens + min(num_documents, num_tokens) * (multiple - 1)
    return most // multiple * multiple


def context_parallel_split_reference(
    cu_seqlens: torch.Tensor, num_tokens: int, *, cp_size: int, num_slots: int
) -> ContextParallelSplit:
    """What `context_parallel_split` computes, in plain torch and document by document."""
    multiple = 2 * cp_size
    begins, lengths = cu_seqlens[:-1].tolist(), cu_seqlens.diff().tolist()
    widths = [-(-length // multiple) * multiple for length in lengths]
    cu_seqlens_padded = [0, *itertools.accumulate(widths)]
    tail = (0, 0, num_slots - cu_seqlens_padded[-1])
    tokens: list[list[torch.Tensor]] = [[] for _ in range(cp_size)]
    positions: list[list[torch.Tensor]] = [[] for _ in range(cp_size)]
    for begin, length, width in [*zip(begins, lengths, widths, strict=True), tail]:
        position = torch.arange(width)
        token = torch.where(position < length, begin + position, -1)
        for rank in range(cp_size):
            for chunk in (rank, multiple - 1 - rank):
                part = slice(chunk * width // multiple, (chunk + 1) * width // multiple)
                tokens[rank].append(token[part])
                positions[rank].append(position[part])
    token_idx = torch.stack([torch.cat(parts) for parts in tokens])
    slots = torch.arange(num_slots)[token_idx.flatten() >= 0]
    inverse = torch.empty(num_tokens, dtype=torch.int64)
    inverse[token_idx.flatten()[slots]] = slots
    return ContextParallelSplit(
        torch.tensor(cu_seqlens_padded, dtype=torch.int32),
        token_idx,
        torch.stack([torch.cat(parts) for parts in positions]),
        inverse,
    )


library.define(
    "context_parallel_split(Tensor cu_seqlens, SymInt num_tokens, SymInt cp_size,"
    " SymInt num_slots) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(library, "context_parallel_split", "CPU")
def _context_parallel_split_cpu(
    cu_seqlens: torch.Tensor, num_tokens: int, cp_size: int, num_slots: int
) -> ContextParallelSplit:
    cu_seqlens = _check(cu_seqlens, num_tokens, cp_size, num_slots)
    outputs = _empty_outputs(cu_seqlens, num_tokens, cp_size, num_slots)
    _core.context_parallel_split(*_arguments(cu_seqlens, num_tokens, cp_size, num_slots, outputs))
    return outputs


def _context_parallel_split_cuda(
    cu_seqlens: torch.Tensor, num_tokens: int, cp_size: int, num_slots: int
) -> ContextParallelSplit:
    launch = cuda_launcher("context_parallel_split")
    cu_seqlens = _check(cu_seqlens, num_tokens, cp_size, num_slots)
    device = cu_seqlens.device
    with torch.cuda.device(device):
        outputs = _empty_outputs(cu_seqlens, num_tokens, cp_size, num_slots)
        arguments = _arguments(cu_seqlens, num_tokens, cp_size, num_slots, outputs)
        launch(*with_stream(arguments, device))
    return outputs


def _arguments(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    cp_size: int,
    num_slots: int,
    outputs: ContextParallelSplit,
) -> tuple[int, ...]:
    pack = (cu_seqlens.data_ptr(), cu_seqlens.numel(), num_tokens)
    return (*pack, cp_size, num_slots, *(output.data_ptr() for output in outputs))


@torch.library.register_fake("dsm::context_parallel_split", lib=library)
def _empty_outputs(
    cu_seqlens: torch.Tensor, num_tokens: int, cp_size: int, num_slots: int
) -> ContextParallelSplit:
    _check_cp_size("dsm::context_parallel_split", cp_size)
    slots = (cp_size, num_slots // cp_size)
    return ContextParallelSplit(
        cu_seqlens.new_empty(cu_seqlens.size(0)),
        cu_seqlens.new_empty(slots, dtype=torch.int64),
        cu_seqlens.new_empty(slots, dtype=torch.int64),
        cu_seqlens.new_empty(num_tokens, dtype=torch.int64),
    )


def _check(cu_seqlens: torch.Tensor, num_tokens: int, cp_size: int, num_slots: int) -> torch.Tensor:
    cu_seqlens = check_cu_seqlens("context_parallel_split", cu_seqlens)
    check_num_tokens("context_parallel_split", num_tokens)
    _check_cp_size("dsm::context_parallel_split", cp_size)
    if not 0 <= num_slots < 1 << 31 or num_slots % (2 * cp_size):
        raise DsmError(
            "dsm::context_parallel_split: num_slots is a multiple of 2 * cp_size below 2^31,"
            f" found {num_slots} with a cp_size of {cp_size}"
        )
    return cu_seqlens


def _check_cp_size(function: str, cp_size: int) -> None:
    if not 1 <= cp_size <= _MOST_RANKS:
        raise DsmError(f"{function}: cp_size is 1 to {_MOST_RANKS}, found {cp_size}")


library.impl("context_parallel_split", _context_parallel_split_cuda, "CUDA")
