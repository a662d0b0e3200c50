"""Where the documents of a pack lie, as Megatron passes it from layer to layer."""

from dataclasses import dataclass, field

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dsm_engine.model.attention.backend import KeptMask


@dataclass(kw_only=True)
class PackedSequences(PackedSeqParams):
    """Megatron's parameters of a pack, with what the backends need beside them.

    The masks that a backend makes are kept here, and made anew for another cu_seqlens_q. `lengths`
    are the caller's: who replaces cu_seqlens_q replaces them too.
    """

    lengths: tuple[int, ...] = ()
    """Of the documents, on the host, for the backend that reads them there (`split`). Megatron's
    unfused RoPE reads cu_seqlens on the host in every layer all the same."""
    mask: KeptMask[Tensor] = field(default_factory=KeptMask, init=False, repr=False, compare=False)
    """Bool [1, 1, T, T], of `dense`."""
    block_mask: KeptMask[BlockMask] = field(
        default_factory=KeptMask, init=False, repr=False, compare=False
    )
    """Of `flex`."""


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
