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
    cu_seqlens is int32 [entries], from 0 to T without falling: entries that repeat T are padding.
    max_seqlen is the longest document's length, on the host. Where `lengths` of the documents are
    not given, they are read from cu_seqlens on the CPU, and on CUDA if the backend needs them: that
    waits for the device. `scale` multiplies the scores, head_dim ** -0.5 if not given. Raises
    DsmError where shapes or lengths do not fit or the backend cannot serve.
    """
    _check_shapes(query, key, value, cu_seqlens)
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
    if lengths is None and (chosen.needs_lengths or cu_seqlens.device.type == "cpu"):
        lengths = _lengths_of(cu_seqlens)
    if lengths is not None and (sum(lengths) != query.size(0) or min(lengths) < 0):
        raise DsmError(
            f"packed_attention: documents fill the pack of {query.size(0)} tokens one behind the"
            f" other; found {sum(lengths)} tokens, the shortest document of {min(lengths)}"
        )
    pack = packed_sequences(cu_seqlens, lengths or (), max_seqlen)
    return chosen.attend(query, key, value, pack, scale)


def _lengths_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise DsmError(f"packed_attention: cu_seqlens begins with 0, found {bounds[0]}")
    return tuple(end - begin for begin, end in pairwise(bounds))


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> None:
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise DsmError(
            f"packed_attention: cu_seqlens is one row of two or more int32, found"
            f" {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise DsmError(
            f"packed_attention: query, key and value are of one dtype, found {query.dtype},"
            f" {key.dtype} and {value.dtype}"
        )
    fits = (
        query.dim() == key.dim() == 3
        and key.shape == value.shape
        and query.size(0) == key.size(0) > 0
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
