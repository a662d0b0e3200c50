"""Document by document through torch's SDPA: the fast path of the CPU, and right on any device.

No mask, no padding, no arithmetic between documents: a document's numbers are bitwise those it has
alone. Views are taken with `split`, whose backward is one concatenation; slices would each have a
gradient of the whole pack's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_engine.model.attention.backend import AttentionCase, Backend, Pack


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


SPLIT = Backend(
    name="split",
    what="torch SDPA, document by document",
    why_not=_why_not,
    attend=_attend,
    needs_lengths=True,
)
