"""Where the documents of a pack lie, as Megatron passes it from layer to layer."""

from dataclasses import dataclass, field

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dsm_engine.model.attention.backend import KeptMask
from dsm_engine.ops.context_parallel import context_parallel_split


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
    slots: KeptMask[Tensor] = field(default_factory=KeptMask, init=False, repr=False, compare=False)
    """Of `slots_of_ranks`."""

    def slots_of_ranks(self, cp_size: int) -> Tensor:
        """int64 [CP, T / CP], which slots of the pack each context-parallel rank computes.

        Documents take a multiple of 2 * CP slots. Raises DsmError where one does not.
        """

        def make(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
            # Padding would need more slots than there are: `split` raises.
            split = context_parallel_split(
                cu_seqlens, num_tokens, cp_size=cp_size, num_slots=num_tokens
            )
            return split.token_idx

        return self.slots.get(make, self.cu_seqlens_q, sum(self.lengths))


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
