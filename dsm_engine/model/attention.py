"""Block-diagonal causal attention over a pack, as Megatron's core attention module.

Documents of similar length are padded to one width and go through
`torch.nn.functional.scaled_dot_product_attention` as a batch: no T x T mask, and no arithmetic
between documents. Plain torch, so it runs on any device.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

# Documents up to this length share one group; above it a group's widths lie within a factor of 2,
# which bounds the padded work to 4 times the exact, and lengths of that size are rare.
_SMALLEST_GROUP_WIDTH = 64


@dataclass(kw_only=True)
class PackedSequences(PackedSeqParams):
    """Megatron's parameters of a pack with the document lengths on the host.

    The lengths spare a device synchronisation per layer; `plan` is made at the first layer and
    serves the rest.
    """

    lengths: tuple[int, ...] = ()
    plan: "AttentionPlan | None" = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    rows: Tensor  # [tokens of the group] where they stand in the pack
    slots: Tensor  # [tokens of the group] where they stand in the padded batch
    num_documents: int
    width: int


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Which documents are computed together, for one pack."""

    groups: tuple[_Group, ...]
    order: Tensor | None  # [T] row of the concatenated groups that holds token t; None: identity


def packed_sequences(
    cu_seqlens: Tensor, lengths: tuple[int, ...], max_seqlen: int
) -> PackedSequences:
    """Parameters of one pack: cu_seqlens int32 [documents + 1], lengths of the documents."""
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        lengths=lengths,
    )


def plan_attention(lengths: tuple[int, ...], device: torch.device) -> AttentionPlan:
    """Groups the documents of a pack by the power of two above their length."""
    members: dict[int, list[int]] = {}
    for document, length in enumerate(lengths):
        width = max(_SMALLEST_GROUP_WIDTH, 1 << (length - 1).bit_length())
        members.setdefault(width, []).append(document)
    all_lengths = torch.tensor(lengths)  # [documents]
    starts = all_lengths.cumsum(0) - all_lengths
    groups: list[_Group] = []
    for documents in members.values():
        group_lengths = all_lengths[documents]
        width = int(group_lengths.max())
        document_of = torch.arange(len(documents)).repeat_interleave(group_lengths)
        within = (
            torch.arange(len(document_of)) - (group_lengths.cumsum(0) - group_lengths)[document_of]
        )
        groups.append(
            _Group(
                rows=(starts[documents][document_of] + within).to(device),
                slots=(document_of * width + within).to(device),
                num_documents=len(documents),
                width=width,
            )
        )
    order = None
    if len(groups) > 1:
        order = torch.argsort(torch.cat([group.rows for group in groups]))
    return AttentionPlan(groups=tuple(groups), order=order)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, scale: float | None = None
) -> Tensor:
    """Causal attention inside each document; query [T, heads, head_dim], key and value
    [T, groups, head_dim] -> [T, heads, head_dim]."""
    outputs = []
    for group in plan.groups:
        whole = plan.order is None
        batch = [
            _pad(tensor if whole else tensor.index_select(0, group.rows), group)
            for tensor in (query, key, value)
        ]
        output = F.scaled_dot_product_attention(
            batch[0],
            batch[1],
            batch[2],
            is_causal=True,
            scale=scale,
            enable_gqa=query.size(1) != key.size(1),
        )  # [documents, heads, width, head_dim]
        rows = output.transpose(1, 2).flatten(0, 1)  # [documents * width, heads, head_dim]
        outputs.append(rows.index_select(0, group.slots))
    if plan.order is None:
        return outputs[0]
    return torch.cat(outputs).index_select(0, plan.order)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, scale: float | None = None
) -> Tensor:
    """The reference: one T x T block-diagonal causal mask. Shapes as in `packed_attention`."""
    num_tokens = query.size(0)
    positions = torch.arange(num_tokens, device=query.device)
    document = torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True)
    mask = (document[:, None] == document[None]) & (positions[:, None] >= positions[None])
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.size(1) != key.size(1),
    )
    return output[0].transpose(0, 1)


class PackedAttention(MegatronModule):
    """Core attention for Megatron's SelfAttention: packs as thd, plain causal batches as sbhd."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """[T, heads, head_dim] -> the same for packs; [s, b, heads, head_dim] -> [s, b, h * d]."""
        assert attention_mask is None and attention_bias is None
        if packed_seq_params is None:
            output = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                is_causal=True,
                scale=self._scale,
                enable_gqa=query.size(2) != key.size(2),
            )
            return output.permute(2, 0, 1, 3).flatten(2)
        if packed_seq_params.plan is None:
            packed_seq_params.plan = plan_attention(packed_seq_params.lengths, query.device)
        return packed_attention(query, key, value, packed_seq_params.plan, scale=self._scale)


def _pad(tensor: Tensor, group: _Group) -> Tensor:
    num_slots = group.num_documents * group.width
    padded = tensor.new_zeros(num_slots, *tensor.shape[1:]).index_copy(0, group.slots, tensor)
    return padded.unflatten(0, (group.num_documents, group.width)).transpose(1, 2)
