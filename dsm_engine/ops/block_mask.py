"""dsm::block_mask: the BlockMask of a pack for torch's FlexAttention, in closed form.

torch's create_block_mask evaluates the mask at all T x T places; here each row and each column of
blocks is four numbers (csrc/core/block_mask.h), so the cost is that of writing the lists.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch._C._functorch import maybe_current_level
from torch.nn.attention.flex_attention import BlockMask

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import (
    check_cu_seqlens,
    check_int,
    check_num_tokens,
    cuda_launcher,
    library,
    limit_window,
    reach,
    with_stream,
)

BlockSize = int | tuple[int, int]
MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# FlexAttention's kernels count the entries of a list in int32.
_MOST_ENTRIES = (1 << 31) - 1

# What make_fx(pre_dispatch=True) traces through, outside the stack of dispatch modes.
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


class BlockMaskLists(NamedTuple):
    """R rows of query blocks, C columns of key blocks; all int32. Of row r the first
    `num_blocks[0, 0, r]` entries of `indices[0, 0, r]` are meant, in ascending order. What stands
    behind them is zeros on CUDA and unspecified on the CPU."""

    kv_num_blocks: torch.Tensor
    """[1, 1, R], key blocks that the queries of a row attend to in part"""
    kv_indices: torch.Tensor
    """[1, 1, R, C]"""
    full_kv_num_blocks: torch.Tensor
    """[1, 1, R], key blocks that all queries of a row attend to as a whole"""
    full_kv_indices: torch.Tensor
    """[1, 1, R, C]"""
    q_num_blocks: torch.Tensor
    """[1, 1, C], query blocks that attend to a part of a column"""
    q_indices: torch.Tensor
    """[1, 1, C, R]"""
    full_q_num_blocks: torch.Tensor
    """[1, 1, C], query blocks all of which attend to the whole of a column"""
    full_q_indices: torch.Tensor
    """[1, 1, C, R]"""


def block_mask_lists(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    block_size: BlockSize = 128,
    causal: bool = True,
    window: int | None = None,
) -> BlockMaskLists:
    """The block lists of a pack: a query attends to the keys of its own document.

    With `causal` to none after itself; with a window only to keys with query - key < window, or
    |query - key| < window unless causal. block_size is of queries and keys, or (queries, keys). A
    block that reaches beyond the pack is never full. cu_seqlens is int32 [num_entries], from 0 to
    num_tokens without falling; entries that repeat num_tokens are padding. Sizes and windows that
    are not positive raise DsmError; so does, on the CPU, a fault in cu_seqlens, which on CUDA is
    not checked.
    """
    sizes = _block_sizes(block_size)
    return _lists_and_bounds(cu_seqlens, num_tokens, sizes, causal, window, False)[0]


def block_mask(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    block_size: BlockSize = 128,
    causal: bool = True,
    window: int | None = None,
) -> BlockMask:
    """The BlockMask for `flex_attention` with queries and keys [1, heads, num_tokens, head_dim].

    Arguments as of `block_mask_lists`. The mask function reads the bounds of a query's keys from a
    tensor, so that compiled attention is not compiled again for the next pack.
    """
    sizes = _block_sizes(block_size)
    lists, key_bounds = _lists_and_bounds(cu_seqlens, num_tokens, sizes, causal, window, True)
    mask_mod = _causal_mask_mod(*key_bounds) if causal else _full_mask_mod(*key_bounds)
    return BlockMask((num_tokens, num_tokens), *lists, sizes, mask_mod)


def block_mask_reference(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    *,
    block_size: BlockSize = 128,
    causal: bool = True,
    window: int | None = None,
) -> BlockMaskLists:
    """What `block_mask_lists` computes, in plain torch and from the dense mask."""
    sizes = _block_sizes(block_size)
    token_idx = torch.arange(num_tokens, device=cu_seqlens.device)
    document_ids = torch.searchsorted(cu_seqlens.long(), token_idx, right=True)
    distance = token_idx[:, None] - token_idx
    mask = document_ids[:, None] == document_ids
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= distance.abs() < window
    counts = _sum_blocks(mask, *sizes)  # [R, C]
    full = counts == sizes[0] * sizes[1]
    partial = (counts > 0) & ~full
    return BlockMaskLists(
        *_ordered(partial), *_ordered(full), *_ordered(partial.T), *_ordered(full.T)
    )


def _sum_blocks(mask: torch.Tensor, query_block_size: int, key_block_size: int) -> torch.Tensor:
    padding = (0, -mask.size(1) % key_block_size, 0, -mask.size(0) % query_block_size)
    padded = torch.nn.functional.pad(mask, padding)
    blocks = padded.unflatten(1, (-1, key_block_size)).unflatten(0, (-1, query_block_size))
    return blocks.sum((1, 3))


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and indices of the blocks of each row, the others behind them."""
    indices = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], indices.int()[None, None]


def _causal_mask_mod(key_begin: torch.Tensor) -> MaskMod:
    # torch hands in indices below num_tokens only: its kernels wrap those of the last block.
    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key >= key_begin[0, 0, query]) & (key <= query)

    return mask_mod


def _full_mask_mod(key_begin: torch.Tensor, key_end: torch.Tensor) -> MaskMod:
    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key >= key_begin[0, 0, query]) & (key < key_end[0, 0, query])

    return mask_mod


def _block_sizes(block_size: BlockSize) -> tuple[int, int]:
    sizes = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(sizes) != 2:
        raise DsmError(
            "dsm::block_mask: block_size is an int, or a tuple of two for queries and keys,"
            f" found {block_size}"
        )
    check_int("block_mask", "block_size of queries", sizes[0])
    check_int("block_mask", "block_size of keys", sizes[1])
    return sizes


def _lists_and_bounds(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    block_sizes: tuple[int, int],
    causal: bool,
    window: int | None,
    with_key_bounds: bool,
) -> tuple[BlockMaskLists, tuple[torch.Tensor, ...]]:
    check_int("block_mask", "num_tokens", num_tokens)
    window = limit_window("block_mask", window)
    arguments = (cu_seqlens, num_tokens, *block_sizes, causal, window, with_key_bounds)
    num_bounds = _num_bounds(causal, with_key_bounds)
    if _is_plainly_eager(cu_seqlens):
        return _views(_fill_buffer(*arguments), num_tokens, *block_sizes, num_bounds)
    key_begin, key_end, *lists = torch.ops.dsm.block_mask(*arguments)
    return BlockMaskLists(*lists), (key_begin, key_end)[:num_bounds]


def _is_plainly_eager(tensor: torch.Tensor) -> bool:
    """Whether nothing traces, transforms or fakes what is done with the tensor.

    Then the dispatcher is of no use, and costs more than the lists.
    """
    return (
        type(tensor) is torch.Tensor
        and (tensor.is_cpu or tensor.is_cuda)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        and maybe_current_level() is None
    )


def _num_bounds(causal: bool, with_key_bounds: bool) -> int:
    return (1 if causal else 2) if with_key_bounds else 0


def _bounds_size(num_tokens: int) -> int:
    return (num_tokens + 3) // 4 * 4


def _fill_buffer(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    causal: bool,
    window: int | None,
    with_key_bounds: bool,
) -> torch.Tensor:
    """BlockMaskArrays of the core, one behind the other."""
    cu_seqlens = check_cu_seqlens("block_mask", cu_seqlens)
    _check_options(num_tokens, query_block_size, key_block_size)
    rows = -(-num_tokens // query_block_size)
    columns = -(-num_tokens // key_block_size)
    num_bounds = _num_bounds(causal, with_key_bounds)
    entries = num_bounds * _bounds_size(num_tokens) + 2 * (rows + columns) + 4 * rows * columns
    pack = (cu_seqlens.data_ptr(), cu_seqlens.numel(), num_tokens)
    options = (query_block_size, key_block_size, causal, reach(num_tokens, window), with_key_bounds)
    if cu_seqlens.is_cpu:
        buffer = cu_seqlens.new_empty((1, 1, entries))
        _core.block_mask(*pack, *options, buffer.data_ptr())
        return buffer
    launch = cuda_launcher("block_mask")
    with torch.cuda.device(cu_seqlens.device):
        # torch's kernels load the first entry of a list, without using it where the count is 0.
        buffer = cu_seqlens.new_zeros((1, 1, entries))
        launch(*with_stream((*pack, *options, buffer.data_ptr()), cu_seqlens.device))
    return buffer


def _views(
    buffer: torch.Tensor,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    num_bounds: int,
) -> tuple[BlockMaskLists, tuple[torch.Tensor, ...]]:
    """The lists, and the key bounds before them."""
    rows, columns = -(-num_tokens // query_block_size), -(-num_tokens // key_block_size)
    area = rows * columns
    # One split and few views: each call of torch costs about as much as all lists.
    bounds_sizes = [_bounds_size(num_tokens)] * num_bounds
    list_sizes = [rows, area, rows, area, columns, area, columns, area]
    parts = buffer.split_with_sizes([*bounds_sizes, *list_sizes], 2)
    kv, kv_indices, full_kv, full_kv_indices, q, q_indices, full_q, full_q_indices = parts[-8:]
    lists = BlockMaskLists(
        kv,
        kv_indices.view(1, 1, rows, columns),
        full_kv,
        full_kv_indices.view(1, 1, rows, columns),
        q,
        q_indices.view(1, 1, columns, rows),
        full_q,
        full_q_indices.view(1, 1, columns, rows),
    )
    return lists, parts[:num_bounds]


# key_begin and key_end, empty where they are not asked for, and the lists. Ten tensors of their
# own: Inductor does not compile attention whose lists are views of one buffer.
library.define(
    "block_mask(Tensor cu_seqlens, SymInt num_tokens, SymInt query_block_size,"
    " SymInt key_block_size, bool causal, SymInt? window, bool with_key_bounds) -> ("
    + ", ".join(["Tensor"] * 10)
    + ")"
)


def _block_mask(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    causal: bool,
    window: int | None,
    with_key_bounds: bool,
) -> tuple[torch.Tensor, ...]:
    window = limit_window("block_mask", window)
    sizes = (num_tokens, query_block_size, key_block_size)
    buffer = _fill_buffer(cu_seqlens, *sizes, causal, window, with_key_bounds)
    lists, bounds = _views(buffer, *sizes, _num_bounds(causal, with_key_bounds))
    missing = [buffer.new_empty((1, 1, 0)) for _ in range(2 - len(bounds))]
    return (*(bound.clone() for bound in bounds), *missing, *(part.clone() for part in lists))


library.impl("block_mask", _block_mask, "CPU")
library.impl("block_mask", _block_mask, "CUDA")


@torch.library.register_fake("dsm::block_mask", lib=library)
def _empty_tensors(
    cu_seqlens: torch.Tensor,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    causal: bool,
    window: int | None,
    with_key_bounds: bool,
) -> tuple[torch.Tensor, ...]:
    _check_block_sizes(query_block_size, key_block_size)
    rows = -(-num_tokens // query_block_size)
    columns = -(-num_tokens // key_block_size)
    num_bounds = _num_bounds(causal, with_key_bounds)
    bounds_sizes = [_bounds_size(num_tokens) if i < num_bounds else 0 for i in range(2)]
    of_rows = [(1, 1, rows), (1, 1, rows, columns)] * 2
    of_columns = [(1, 1, columns), (1, 1, columns, rows)] * 2
    return tuple(
        cu_seqlens.new_empty(shape)
        for shape in (*((1, 1, size) for size in bounds_sizes), *of_rows, *of_columns)
    )


def _check_options(num_tokens: int, query_block_size: int, key_block_size: int) -> None:
    check_num_tokens("block_mask", num_tokens)
    _check_block_sizes(query_block_size, key_block_size)
    entries = -(-num_tokens // query_block_size) * -(-num_tokens // key_block_size)
    if entries > _MOST_ENTRIES:
        raise DsmError(
            f"dsm::block_mask: a list of {num_tokens} tokens in blocks of {query_block_size} by"
            f" {key_block_size} has {entries} entries, more than 2^31 - 1: take larger blocks"
        )


def _check_block_sizes(*block_sizes: int) -> None:
    for size in block_sizes:
        if not 1 <= size < 1 << 31:
            raise DsmError(f"dsm::block_mask: block_size is 1 to 2^31 - 1, found {size}")
