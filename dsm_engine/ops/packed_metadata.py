"""dsm::packed_metadata: what a model and its loss need to know of every token of a pack."""

from typing import NamedTuple

import torch

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_num_tokens,
    check_one_device,
    check_row,
    cuda_launcher,
    library,
    with_stream,
)

_NO_LABEL = -100


class PackedMetadata(NamedTuple):
    """T is the number of tokens of the pack."""

    position_ids: torch.Tensor
    """int64 [T], from 0 in each document"""
    document_ids: torch.Tensor
    """int32 [T], index of the document within the pack"""
    segment_ends: torch.Tensor
    """int32 [T], where the token's document ends: the index after its last token"""
    labels: torch.Tensor
    """int64 [T], the next token of the same document where it is supervised, else -100"""
    loss_weights: torch.Tensor
    """float32 [T], 1 where there is a label, else 0"""
    max_seqlen: torch.Tensor
    """int32 [1], tokens of the longest document"""


def packed_metadata(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> PackedMetadata:
    """Metadata of a pack of T tokens: cu_seqlens int32 [num_entries], tokens int64 [T], supervised
    bool [T].

    cu_seqlens runs from 0 to T without falling; entries that repeat T are padding. On the CPU a
    fault in it raises DsmError; on CUDA it is not checked.
    """
    return PackedMetadata(*torch.ops.dsm.packed_metadata(cu_seqlens, tokens, supervised))


def packed_metadata_reference(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> PackedMetadata:
    """What `packed_metadata` computes, in plain torch."""
    token_idx = torch.arange(tokens.numel(), device=tokens.device)
    document_ids = torch.searchsorted(cu_seqlens.long(), token_idx, right=True) - 1
    segment_ends = cu_seqlens.long()[document_ids + 1]
    labelled = (token_idx + 1 < segment_ends) & supervised.roll(-1)
    return PackedMetadata(
        position_ids=token_idx - cu_seqlens.long()[document_ids],
        document_ids=document_ids.int(),
        segment_ends=segment_ends.int(),
        labels=torch.where(labelled, tokens.roll(-1), _NO_LABEL),
        loss_weights=labelled.float(),
        max_seqlen=cu_seqlens.diff().max().reshape(1),
    )


library.define(
    "packed_metadata(Tensor cu_seqlens, Tensor tokens, Tensor supervised)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(library, "packed_metadata", "CPU")
def _packed_metadata_cpu(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> PackedMetadata:
    inputs = _check(cu_seqlens, tokens, supervised)
    outputs = _empty_outputs(*inputs)
    _core.packed_metadata(*_addresses(inputs, outputs))
    return outputs


def _packed_metadata_cuda(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> PackedMetadata:
    launch = cuda_launcher("packed_metadata")
    inputs = _check(cu_seqlens, tokens, supervised)
    with torch.cuda.device(tokens.device):
        outputs = _empty_outputs(*inputs)
        launch(*with_stream(_addresses(inputs, outputs), tokens.device))
    return outputs


def _check(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cu_seqlens = check_cu_seqlens("packed_metadata", cu_seqlens)
    tokens = check_row("packed_metadata", "tokens", tokens, torch.int64)
    supervised = check_row("packed_metadata", "supervised", supervised, torch.bool)
    if supervised.numel() != tokens.numel():
        raise DsmError(
            f"dsm::packed_metadata: supervised has an entry for each of {tokens.numel()} tokens,"
            f" found {supervised.numel()}"
        )
    check_num_tokens("packed_metadata", tokens.numel())
    check_one_device("packed_metadata", cu_seqlens, tokens, supervised)
    return cu_seqlens, tokens, supervised


def _addresses(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], outputs: PackedMetadata
) -> tuple[int, ...]:
    cu_seqlens, tokens, supervised = inputs
    return (
        cu_seqlens.data_ptr(),
        cu_seqlens.numel(),
        tokens.numel(),
        tokens.data_ptr(),
        supervised.data_ptr(),
        *(output.data_ptr() for output in outputs),
    )


@torch.library.register_fake("dsm::packed_metadata", lib=library)
def _empty_outputs(
    cu_seqlens: torch.Tensor, tokens: torch.Tensor, supervised: torch.Tensor
) -> PackedMetadata:
    num_tokens = tokens.size(0)
    return PackedMetadata(
        position_ids=tokens.new_empty(num_tokens),
        document_ids=tokens.new_empty(num_tokens, dtype=torch.int32),
        segment_ends=tokens.new_empty(num_tokens, dtype=torch.int32),
        labels=tokens.new_empty(num_tokens),
        loss_weights=tokens.new_empty(num_tokens, dtype=torch.float32),
        max_seqlen=tokens.new_empty(1, dtype=torch.int32),
    )


library.impl("packed_metadata", _packed_metadata_cuda, "CUDA")
