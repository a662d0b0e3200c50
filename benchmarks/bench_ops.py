"""The operators over cu_seqlens beside what torch has for the same, in one run, on this machine.

    python benchmarks/bench_ops.py --output benchmarks/results/bench-ops.json

Results are checked equal before they are timed. benchmarks/README.md says what each row measures.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lengths import pack_lengths
from result_file import Row, Timing, measure, publish
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dsm_engine import _core
from dsm_engine.model.attention.packed import packed_attention
from dsm_engine.ops.block_mask import block_mask
from dsm_engine.ops.dense_mask import dense_mask

_BLOCK_SIZE = 128
_HEAD_DIM = 64
_SIZES = (4_096, 32_768, 131_072)


def main() -> None:
    arguments = _parse_arguments()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    repetitions = arguments.repetitions
    rows = [_bench_lists(repetitions)]
    for num_tokens in _SIZES:
        with_baseline = num_tokens <= arguments.largest_baseline
        rows.append(_bench_block_mask(num_tokens, repetitions, with_baseline=with_baseline))
    rows += _bench_dense_mask(repetitions)
    rows += _bench_attention(arguments.attention_repetitions)
    publish(rows, arguments.output)


def _cu_seqlens(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _document_ids(lengths: Sequence[int]) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def _measure_short(call: Callable[[], Any], repetitions: int, calls: int) -> Timing:
    """Seconds of a call that may take microseconds: each measurement is of many calls."""

    def many() -> None:
        for _ in range(calls):
            call()

    return measure(many, repetitions).per(calls)


def _bench_lists(repetitions: int) -> Row:
    num_tokens = _SIZES[0]
    lengths = pack_lengths(num_tokens)
    cu_seqlens = _cu_seqlens(lengths)
    blocks = num_tokens // _BLOCK_SIZE
    buffer = torch.empty(4 * blocks + 4 * blocks * blocks, dtype=torch.int32)
    pack = (cu_seqlens.data_ptr(), cu_seqlens.numel(), num_tokens)
    options = (_BLOCK_SIZE, _BLOCK_SIZE, True, num_tokens, False)  # causal, no window, no bounds
    theirs = partial(_create_block_mask, _document_ids(lengths), num_tokens)
    return Row(
        name=f"block_mask_lists_{num_tokens}",
        n=num_tokens,
        value=_measure_short(
            partial(_core.block_mask, *pack, *options, buffer.data_ptr()), repetitions, calls=10_000
        ),
        baseline="torch: create_block_mask, eager",
        baseline_value=measure(theirs, repetitions),
    )


def _bench_block_mask(num_tokens: int, repetitions: int, *, with_baseline: bool) -> Row:
    lengths = pack_lengths(num_tokens)
    ours = partial(block_mask, _cu_seqlens(lengths), num_tokens, block_size=_BLOCK_SIZE)
    baseline = None
    if with_baseline:
        theirs = partial(_create_block_mask, _document_ids(lengths), num_tokens)
        _check_equal_blocks(ours(), theirs())
        # Some take seconds.
        baseline = measure(theirs, repetitions if num_tokens == _SIZES[0] else 1, warm_up=0)
    return Row(
        name=f"block_mask_{num_tokens}",
        n=num_tokens,
        value=_measure_short(ours, repetitions, calls=max(20, 8_192_000 // num_tokens)),
        baseline="torch: create_block_mask, eager",
        baseline_value=baseline,
    )


def _create_block_mask(document_ids: Tensor, num_tokens: int) -> BlockMask:
    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[query] == document_ids[key]) & (query >= key)

    return create_block_mask(
        attends, None, None, num_tokens, num_tokens, device="cpu", BLOCK_SIZE=_BLOCK_SIZE
    )


def _check_equal_blocks(ours: BlockMask, theirs: BlockMask) -> None:
    for name in ("kv", "full_kv", "q", "full_q"):
        my_counts, counts = (getattr(mask, f"{name}_num_blocks")[0, 0] for mask in (ours, theirs))
        assert torch.equal(my_counts, counts), name
        mine, other = (getattr(mask, f"{name}_indices")[0, 0] for mask in (ours, theirs))
        for row, count in enumerate(counts.tolist()):
            assert torch.equal(mine[row, :count], other[row, :count]), (name, row)


def _bench_dense_mask(repetitions: int) -> list[Row]:
    num_tokens = 4_096
    lengths = pack_lengths(num_tokens)
    document_ids = _document_ids(lengths)

    def equality_and_tril() -> Tensor:
        return (document_ids[:, None] == document_ids).tril_()

    def block_diagonal() -> Tensor:
        return torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril_() for n in lengths))

    ours = partial(dense_mask, _cu_seqlens(lengths), num_tokens)
    threads = torch.get_num_threads()
    rows = []
    for name, baseline, theirs, theirs_threads in (
        (
            "dense_mask_4096",
            f"torch on {threads} threads: equality of document ids, then tril_",
            equality_and_tril,
            threads,
        ),
        (
            "dense_mask_4096_vs_block_diag",
            "torch on one thread: block_diag of ones().tril_()",
            block_diagonal,
            1,
        ),
    ):
        assert torch.equal(ours()[0, 0], theirs())
        torch.set_num_threads(theirs_threads)
        baseline_value = measure(theirs, repetitions, warm_up=3)
        torch.set_num_threads(threads)
        rows.append(
            Row(
                name=name,
                n=num_tokens,
                value=measure(ours, repetitions, warm_up=3),
                baseline=baseline,
                baseline_value=baseline_value,
            )
        )
    return rows


def _bench_attention(repetitions: int) -> list[Row]:
    rows = []
    for suffix, heads, groups, dtype in (
        ("", 8, 8, torch.float32),
        ("_gqa_bf16", 9, 3, torch.bfloat16),
    ):
        ours, theirs = _attention_pair(4_096, heads, groups, dtype)
        bound = 2e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours(), theirs(), atol=bound, rtol=bound)
        upstream = torch.randn_like(ours())
        passes: list[tuple[str, Callable[[Callable[[], Tensor]], Callable[[], Any]]]] = [
            ("", lambda attend: lambda: attend().backward(upstream)),  # noqa: B023
            ("_forward", lambda attend: torch.no_grad()(attend)),
        ]
        rows += [
            Row(
                name=f"cpu_attention_4096{suffix}{name}",
                n=4_096,
                value=measure(make(ours), repetitions),
                baseline="torch: scaled_dot_product_attention with the dense mask, made before",
                baseline_value=measure(make(theirs), repetitions),
            )
            for name, make in passes
        ]
    return rows


def _attention_pair(
    num_tokens: int, heads: int, groups: int, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Attention of one pack, ours and through torch with one mask, over the same leaves."""
    lengths = pack_lengths(num_tokens)
    cu_seqlens = _cu_seqlens(lengths)
    query, key, value = (
        torch.randn(num_tokens, n, _HEAD_DIM).to(dtype).requires_grad_()
        for n in (heads, groups, groups)
    )
    mask = dense_mask(cu_seqlens, num_tokens)

    def ours() -> Tensor:
        return packed_attention(
            query, key, value, cu_seqlens, max(lengths), lengths=tuple(lengths), backend="split"
        )

    def theirs() -> Tensor:
        batch = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(*batch, attn_mask=mask, enable_gqa=heads != groups)
        return output[0].transpose(0, 1)

    return ours, theirs


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The operators, timed beside torch's own means")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--attention-repetitions", type=int, default=7)
    parser.add_argument(
        "--largest-baseline",
        type=int,
        default=32_768,
        help="tokens up to which create_block_mask is run: it takes seconds, and tokens squared"
        " of memory several times over",
    )
    parser.add_argument("--output", type=Path, help="the JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
