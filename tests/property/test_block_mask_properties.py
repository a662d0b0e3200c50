"""Block masks against the definition: a block is listed where any, and full where all, of its
places are in the dense mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.ops.block_mask import block_mask_lists


@st.composite
def _packs(draw: st.DrawFn) -> tuple[list[int], int]:
    num_tokens = draw(st.integers(1, 90))
    cuts = draw(st.lists(st.integers(0, num_tokens), max_size=12))
    padding = draw(st.integers(0, 3))
    return [0, *sorted(cuts), *[num_tokens] * (1 + padding)], num_tokens


def _attends(documents: list[int], query: int, key: int, causal: bool, window: int) -> bool:
    distance = query - key
    near = 0 <= distance < window if causal else abs(distance) < window
    return near and documents[query] == documents[key]


@settings(max_examples=100, deadline=None)
@given(
    pack=_packs(),
    query_block_size=st.integers(1, 40),
    key_block_size=st.integers(1, 40),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 100),
)
def test_lists_are_any_and_all_over_the_dense_mask(
    pack, query_block_size, key_block_size, causal, window
) -> None:
    cu_seqlens, num_tokens = pack
    documents = [
        document
        for document in range(len(cu_seqlens) - 1)
        for _ in range(cu_seqlens[document], cu_seqlens[document + 1])
    ]
    rows, columns = -(-num_tokens // query_block_size), -(-num_tokens // key_block_size)
    counts = [[0] * columns for _ in range(rows)]
    for query in range(num_tokens):
        for key in range(num_tokens):
            counts[query // query_block_size][key // key_block_size] += _attends(
                documents, query, key, causal, num_tokens if window is None else window
            )
    whole = query_block_size * key_block_size
    partial = [[0 < count < whole for count in row] for row in counts]
    full = [[count == whole for count in row] for row in counts]
    lists = block_mask_lists(
        torch.tensor(cu_seqlens, dtype=torch.int32),
        num_tokens,
        block_size=(query_block_size, key_block_size),
        causal=causal,
        window=window,
    )
    assert _listed(lists.kv_num_blocks, lists.kv_indices) == _positions(partial)
    assert _listed(lists.full_kv_num_blocks, lists.full_kv_indices) == _positions(full)
    assert _listed(lists.q_num_blocks, lists.q_indices) == _positions(_transposed(partial))
    assert _listed(lists.full_q_num_blocks, lists.full_q_indices) == _positions(_transposed(full))


def _listed(counts: torch.Tensor, indices: torch.Tensor) -> list[list[int]]:
    return [
        line[:count]
        for line, count in zip(indices[0, 0].tolist(), counts[0, 0].tolist(), strict=True)
    ]


def _positions(lines: list[list[bool]]) -> list[list[int]]:
    return [[i for i, member in enumerate(line) if member] for line in lines]


def _transposed(lines: list[list[bool]]) -> list[list[bool]]:
    return [list(column) for column in zip(*lines, strict=True)]
