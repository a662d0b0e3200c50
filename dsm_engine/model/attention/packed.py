"""The interface: attention over a pack, by any backend."""

from itertools import pairwise

import torch
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.model.attention.backend import AttentionCase
from dsm_engine.model.attention.choice import choose_backend
from dsm_engine.model.attention.packs import packed_sequences


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    lengths: tuple[int, ...] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention inside each document of a pack.

    query [T, heads, head_dim], key and value [T, groups, head_dim] -> [T, heads, head_dim].
    cu_seqlens is int32 [entries], from 0 to T without falling; max_seqlen is the longest document's
    length, on the host. `lengths` of the documents are read from cu_seqlens where they are not
    given, which waits for a CUDA device. `scale` multiplies the scores, head_dim ** -0.5 if not
    given. Raises DsmError where shapes do not fit or the backend cannot serve.
    """
    _check_shapes(query, key, value)
    case = AttentionCase(
        device=query.device,
        dtype=query.dtype,
        num_heads=query.size(1),
        num_groups=key.size(1),
        head_dim=query.size(2),
        training=torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in (query, key, value)),
    )
    chosen = choose_backend(backend, case)
    if lengths is None:
        lengths = tuple(end - begin for begin, end in pairwise(cu_seqlens.tolist()))
    if sum(lengths) != query.size(0):
        raise DsmError(
            f"packed_attention: documents of {sum(lengths)} tokens in a pack of {query.size(0)}"
        )
    pack = packed_sequences(cu_seqlens, lengths, max_seqlen)
    return chosen.attend(query, key, value, pack, scale)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    fits = (
        query.dim() == key.dim() == 3
        and key.shape == value.shape
        and query.size(0) == key.size(0)
        and query.size(2) == key.size(2)
        and key.size(1) > 0
        and query.size(1) % key.size(1) == 0
    )
    if not fits:
        raise DsmError(
            "packed_attention: query is [T, heads, head_dim], key and value are"
            f" [T, groups, head_dim] with groups dividing heads; found {tuple(query.shape)},"
            f" {tuple(key.shape)} and {tuple(value.shape)}"
        )
