"""Where the documents of a pack lie, as Megatron passes it from layer to layer."""

from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


@dataclass(kw_only=True)
class PackedSequences(PackedSeqParams):
    """Megatron's parameters of a pack, with what the backends need beside them.

    What a backend makes of a pack is kept here: the first layer makes it, the others find it.
    """

    lengths: tuple[int, ...] = ()
    """Of the documents, on the host: they spare a device synchronisation per layer."""
    mask: Tensor | None = None
    """Bool [1, 1, T, T], once `dense` has been asked."""
    block_mask: BlockMask | None = None
    """Once `flex` has been asked."""


def packed_sequences(
    cu_seqlens: Tensor, lengths: tuple[int, ...], max_seqlen: int
) -> PackedSequences:
    """Parameters of one pack: cu_seqlens int32 [entries], lengths of the documents."""
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        lengths=lengths,
    )
