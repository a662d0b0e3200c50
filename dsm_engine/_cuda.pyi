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
