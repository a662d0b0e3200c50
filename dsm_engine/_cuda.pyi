def packed_metadata(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    position_ids: int,
    document_ids: int,
    stream: int,
) -> None: ...
def dense_mask(
    cu_seqlens: int, num_entries: int, num_tokens: int, mask: int, stream: int
) -> None: ...
def block_mask(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    query_block_size: int,
    key_block_size: int,
    causal: bool,
    window: int,
    with_key_bounds: bool,
    buffer: int,
    stream: int,
) -> None: ...
def context_parallel_split(
    cu_seqlens: int,
    num_entries: int,
    num_tokens: int,
    cp_size: int,
    num_slots: int,
    cu_seqlens_padded: int,
    token_idx: int,
    position_ids: int,
    inverse: int,
    stream: int,
) -> None: ...
