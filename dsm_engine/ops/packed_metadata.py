"""dsm::packed_metadata: position and document of every token of a pack, from cu_seqlens."""

import torch

from dsm_engine import _core
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_num_tokens,
    cuda_core,
    library,
    stream_address,
)


def packed_metadata(cu_seqlens: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Position ids int64 [num_tokens] and document ids int32 [num_tokens].

    cu_seqlens is int32 [num_entries], from 0 to num_tokens without falling; entries that repeat
    num_tokens are padding. On the CPU a fault in it raises DsmError; on CUDA it is not checked.
    """
    return torch.ops.dsm.packed_metadata(cu_seqlens, num_tokens)


def packed_metadata_reference(
    cu_seqlens: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `packed_metadata` computes, in plain torch."""
    token_idx = torch.arange(num_tokens, device=cu_seqlens.device)
    document_ids = torch.searchsorted(cu_seqlens.long(), token_idx, right=True) - 1
    return token_idx - cu_seqlens.long()[document_ids], document_ids.int()


library.define("packed_metadata(Tensor cu_seqlens, SymInt num_tokens) -> (Tensor, Tensor)")


@torch.library.impl(library, "packed_metadata", "CPU")
def _packed_metadata_cpu(
    cu_seqlens: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    cu_seqlens = check_cu_seqlens("packed_metadata", cu_seqlens)
    check_num_tokens("packed_metadata", num_tokens)
    position_ids, document_ids = _empty_outputs(cu_seqlens, num_tokens)
    _core.packed_metadata(
        cu_seqlens.data_ptr(),
        cu_seqlens.numel(),
        num_tokens,
        position_ids.data_ptr(),
        document_ids.data_ptr(),
    )
    return position_ids, document_ids


def _packed_metadata_cuda(
    cu_seqlens: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    assert cuda_core is not None
    cu_seqlens = check_cu_seqlens("packed_metadata", cu_seqlens)
    check_num_tokens("packed_metadata", num_tokens)
    with torch.cuda.device(cu_seqlens.device):
        position_ids, document_ids = _empty_outputs(cu_seqlens, num_tokens)
        cuda_core.packed_metadata(
            cu_seqlens.data_ptr(),
            cu_seqlens.numel(),
            num_tokens,
            position_ids.data_ptr(),
            document_ids.data_ptr(),
            stream_address(cu_seqlens.device),
        )
    return position_ids, document_ids


@torch.library.register_fake("dsm::packed_metadata", lib=library)
def _empty_outputs(cu_seqlens: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    position_ids = cu_seqlens.new_empty(num_tokens, dtype=torch.int64)
    return position_ids, cu_seqlens.new_empty(num_tokens, dtype=torch.int32)


if cuda_core is not None:
    library.impl("packed_metadata", _packed_metadata_cuda, "CUDA")
