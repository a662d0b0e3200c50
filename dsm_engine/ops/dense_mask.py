"""dsm::dense_mask: the block-diagonal causal mask of a pack as one dense matrix.

num_tokens^2 bytes: for the reference attention and small models. Kernels take cu_seqlens.
"""

import torch

from dsm_engine import _core
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_num_tokens,
    cuda_core,
    library,
    stream_address,
)


def dense_mask(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Bool [num_tokens, num_tokens]: whether a query (row) attends to a key (column).

    It does where both are of one document and the key is not after the query. cu_seqlens is int32
    [num_entries], from 0 to num_tokens without falling; entries that repeat num_tokens are padding.
    On the CPU a fault in it raises DsmError; on CUDA it is not checked.
    """
    return torch.ops.dsm.dense_mask(cu_seqlens, num_tokens)


def dense_mask_reference(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """What `dense_mask` computes, in plain torch."""
    token_idx = torch.arange(num_tokens, device=cu_seqlens.device)
    documents = torch.searchsorted(cu_seqlens.long(), token_idx, right=True)
    return (documents[:, None] == documents) & (token_idx[:, None] >= token_idx)


library.define("dense_mask(Tensor cu_seqlens, SymInt num_tokens) -> Tensor")


@torch.library.impl(library, "dense_mask", "CPU")
def _dense_mask_cpu(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    cu_seqlens = check_cu_seqlens("dense_mask", cu_seqlens)
    check_num_tokens("dense_mask", num_tokens)
    mask = _empty_mask(cu_seqlens, num_tokens)
    _core.dense_mask(cu_seqlens.data_ptr(), cu_seqlens.numel(), num_tokens, mask.data_ptr())
    return mask


def _dense_mask_cuda(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    assert cuda_core is not None
    cu_seqlens = check_cu_seqlens("dense_mask", cu_seqlens)
    check_num_tokens("dense_mask", num_tokens)
    with torch.cuda.device(cu_seqlens.device):
        mask = _empty_mask(cu_seqlens, num_tokens)
        cuda_core.dense_mask(
            cu_seqlens.data_ptr(),
            cu_seqlens.numel(),
            num_tokens,
            mask.data_ptr(),
            stream_address(cu_seqlens.device),
        )
    return mask


@torch.library.register_fake("dsm::dense_mask", lib=library)
def _empty_mask(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return cu_seqlens.new_empty((num_tokens, num_tokens), dtype=torch.bool)


if cuda_core is not None:
    library.impl("dense_mask", _dense_mask_cuda, "CUDA")
