"""Document by document through torch's SDPA: the fast path of the CPU, and right on any device.

No mask, no padding, no arithmetic between documents: a document's numbers are bitwise those it has
alone. Views are taken with `split`, whose backward is one concatenation; slices would each have a
gradient of the whole pack's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_engine.model.attention.backend import AttentionCase, Backend, ContextParallel, Pack
from dsm_engine.model.attention.gather import gather_pack


def _why_not(case: AttentionCase) -> str | None:
    return None


def _attend(query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float | None) -> Tensor:
    lengths = [length for length in pack.lengths if length]
    by_document = (
        tensor.transpose(0, 1)[None].split(lengths, dim=2) for tensor in (query, key, value)
    )  # three times [1, heads, length, head_dim] for each document
    outputs = [
        F.scaled_dot_product_attention(
            document_query,
            document_key,
            document_value,
            is_causal=True,
            scale=scale,
            enable_gqa=query.size(1) != key.size(1),
        )
        for document_query, document_key, document_value in zip(*by_document, strict=True)
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def _attend_share(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Pack,
    scale: float | None,
    ranks: ContextParallel,
) -> Tensor:
    """Keys and values of all ranks, queries of this one; each document's two chunks of them see
    what stands before them."""
    keys_and_values = gather_pack(torch.stack([key, value], dim=1), pack, ranks)
    keys, values = keys_and_values.transpose(0, 2).unbind(1)  # [groups, T, head_dim]
    lengths = [length for length in pack.lengths if length]
    widths = [length // (2 * ranks.size) for length in lengths for _ in range(2)]
    chunks = query.transpose(0, 1)[None].split(widths, dim=2)  # two [1, heads, width, d] a document
    outputs = []
    documents = zip(
        keys[None].split(lengths, dim=2), values[None].split(lengths, dim=2), strict=True
    )
    for document_idx, (document_keys, document_values) in enumerate(documents):
        width = widths[2 * document_idx]
        for half, place in enumerate((ranks.rank, 2 * ranks.size - 1 - ranks.rank)):
            end = (place + 1) * width
            outputs.append(
                F.scaled_dot_product_attention(
                    chunks[2 * document_idx + half],
                    document_keys[:, :, :end],
                    document_values[:, :, :end],
                    attn_mask=_ends_together(width, end, query.device) if place else None,
                    is_causal=place == 0,
                    scale=scale,
                    enable_gqa=query.size(1) != key.size(1),
                )
            )
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def _ends_together(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Bool [queries, keys]: the last query sees the last key, each before it one less."""
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return mask.tril(num_keys - num_queries)


SPLIT = Backend(
    name="split",
    what="torch SDPA, document by document",
    why_not=_why_not,
    attend=_attend,
    needs_lengths=True,
    attend_share=_attend_share,
)
