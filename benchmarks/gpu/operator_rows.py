"""The operators over cu_seqlens on a device: checked against the CPU's bit by bit, then timed.

Imported where they are used are the operators: without a device nothing here runs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from cases import Case, first_line
from device_timing import Call, Timer, copy_bandwidth, empty_launch, rate
from lengths import pack_lengths
from result_file import Row, Timing
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Operator = Callable[[int, torch.device], Call]
"""From tokens and device to the call that is timed; its inputs depend on the tokens alone."""

_COPY = "a copy, bytes read and written"
_MEAN = 350
_GIGA = 1_000_000_000
_CHECKED_SIZES = (1, 5, 127, 4_096, 5_003)
_CP_SIZE = 4
_NUM_SLICES, _SLICES_OF_A_DOCUMENT = 16, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What the device can do at best."""

    copy: Timing
    """Bytes a second, read and written."""
    launch: Timing
    """Seconds of a kernel that does nothing."""

    def rows(self) -> list[Row]:
        return [
            Row(name="copy_bandwidth", n=1, value=_in_giga(self.copy), unit="GB/s"),
            Row(name="empty_kernel", n=1, value=self.launch),
        ]


def measure_ceilings(timer: Timer, device: torch.device) -> Ceilings:
    return Ceilings(copy=copy_bandwidth(timer, device), launch=empty_launch(timer))


def operator_checks(device: torch.device) -> Iterable[tuple[str, Callable[[], None]]]:
    """A check of each operator against the CPU's, by the subject's name."""
    for subject, operator in OPERATORS.items():
        yield subject, partial(_check, operator, device)


def operator_cases(timer: Timer, device: torch.device, ceilings: Ceilings) -> list[Case]:
    """The rows, small ones first."""
    cases = []
    for tokens in (4_096, 131_072):
        row = partial(_metadata_row, tokens, timer, device, ceilings)
        cases.append(_case("packed_metadata", tokens, row))
    for subject in ("context_parallel_split", "segment_loss"):
        for tokens in (4_096, 131_072):
            cases.append(_case(subject, tokens, partial(_row, subject, tokens, timer, device)))
    for tokens in (4_096, 16_384, 32_768):
        for dtype in _DTYPES:
            row = partial(_dense_row, dtype, tokens, timer, device, ceilings)
            cases.append(_case(f"dense_mask_{dtype}", tokens, row))
            row = partial(_fill_row, dtype, tokens, timer, device, ceilings)
            cases.append(_case(f"fill_{dtype}", tokens, row))
    for tokens in (4_096, 32_768, 131_072):
        row = partial(_block_mask_row, tokens, timer, device)
        cases.append(_case("block_mask", tokens, row, needs_s=60))  # create_block_mask is compiled
    return cases


def make_cu_seqlens(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 [documents + 1] of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)


def _case(subject: str, tokens: int, run: Callable[[], Row], needs_s: float = 10) -> Case:
    name = f"{subject}_{tokens}"
    target = _target_of(subject, tokens)
    return Case(name=name, n=tokens, subject=subject, needs_s=needs_s, run=run, target=target)


def _target_of(subject: str, tokens: int) -> str | None:
    if subject == "packed_metadata":
        return "at most 2 empty kernels"
    # The masks of 4,096 tokens fit into the L2 cache: no bandwidth is to be seen.
    if subject.startswith("dense_mask_") and tokens >= 16_384:
        return "90% of copy bandwidth"
    if subject == "block_mask" and tokens == 32_768:
        return "under 15 us"
    return None


def _row(subject: str, tokens: int, timer: Timer, device: torch.device) -> Row:
    call = OPERATORS[subject](tokens, device)
    return Row(name=f"{subject}_{tokens}", n=tokens, value=timer.time_small(call))


def _metadata_row(tokens: int, timer: Timer, device: torch.device, ceilings: Ceilings) -> Row:
    value = timer.time_small(OPERATORS["packed_metadata"](tokens, device))
    return Row(
        name=f"packed_metadata_{tokens}",
        n=tokens,
        value=value,
        baseline="a kernel that does nothing",
        baseline_value=ceilings.launch,
        details=_verdict("packed_metadata", tokens, value.median <= 2 * ceilings.launch.median),
    )


def _dense_row(
    dtype: str, tokens: int, timer: Timer, device: torch.device, ceilings: Ceilings
) -> Row:
    subject = f"dense_mask_{dtype}"
    seconds = timer.time_large(OPERATORS[subject](tokens, device))
    num_bytes = tokens * tokens * _DTYPES[dtype].itemsize
    value = rate(seconds, num_bytes)
    verdict = _verdict(subject, tokens, value.median >= 0.9 * ceilings.copy.median)
    return Row(
        name=f"{subject}_{tokens}",
        n=tokens,
        value=_in_giga(value),
        unit="GB/s",
        baseline=_COPY,
        baseline_value=_in_giga(ceilings.copy),
        details={"seconds": seconds.median, "bytes": num_bytes, **verdict},
    )


def _fill_row(
    dtype: str, tokens: int, timer: Timer, device: torch.device, ceilings: Ceilings
) -> Row:
    """torch's fill of what the mask takes: what writing alone comes to."""
    mask = torch.empty(tokens, tokens, dtype=_DTYPES[dtype], device=device)
    num_bytes = mask.numel() * mask.element_size()
    return Row(
        name=f"fill_{dtype}_{tokens}",
        n=tokens,
        value=_in_giga(rate(timer.time_large(lambda: mask.fill_(1)), num_bytes)),
        unit="GB/s",
        baseline=_COPY,
        baseline_value=_in_giga(ceilings.copy),
        details={"bytes": num_bytes},
    )


def _block_mask_row(tokens: int, timer: Timer, device: torch.device) -> Row:
    ours = OPERATORS["block_mask"](tokens, device)
    value = timer.time_small(ours)
    baseline, baseline_value = "torch: create_block_mask, compiled", None
    details = _verdict("block_mask", tokens, value.median < 15e-6)
    expected = None
    try:
        theirs = _compiled_create_block_mask(tokens, device)
        expected = theirs()
        baseline_value = timer.time_large(theirs)
    except Exception as error:  # noqa: BLE001 - it may need more memory than there is
        details["baseline_error"] = first_line(error)
        baseline = f"{baseline}, failed: {first_line(error)}"
    if expected is not None and not _same_lists(ours(), expected):
        raise AssertionError("the lists are not create_block_mask's")
    return Row(
        name=f"block_mask_{tokens}",
        n=tokens,
        value=value,
        baseline=baseline,
        baseline_value=baseline_value,
        details={"equals_baseline": None if expected is None else True, **details},
    )


def _compiled_create_block_mask(tokens: int, device: torch.device) -> Call:
    cu_seqlens = _pack(tokens, device)
    token_idx = torch.arange(tokens, device=device)
    document_ids = torch.searchsorted(cu_seqlens, token_idx.int(), right=True)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_ids[query] == document_ids[key]) & (query >= key)

    create = torch.compile(create_block_mask)
    return lambda: create(mask_mod, None, None, tokens, tokens, device=str(device))


def _same_lists(ours: Any, theirs: BlockMask) -> bool:
    """Whether block_mask_lists gave what a BlockMask holds."""
    expected = _meant([getattr(theirs, name) for name in ours._fields])
    return all(torch.equal(a, b) for a, b in zip(_tensors(ours), expected, strict=True))


def _verdict(subject: str, tokens: int, met: bool) -> dict[str, Any]:
    target = _target_of(subject, tokens)
    return {} if target is None else {"target": target, "met": met}


def _in_giga(rates: Timing) -> Timing:
    return rates.per(_GIGA)


def _check(operator: Operator, device: torch.device) -> None:
    for tokens in _CHECKED_SIZES:
        expected = _tensors(operator(tokens, torch.device("cpu"))())
        found = _tensors(operator(tokens, device)())
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            if ours.dtype != theirs.dtype or not torch.equal(ours.cpu(), theirs):
                raise AssertionError(f"output {i} at {tokens} tokens is not the CPU's")


def _tensors(output: Any) -> list[Tensor]:
    """What an operator's output says, as tensors to compare."""
    if isinstance(output, Tensor):
        return [output]
    return _meant(list(output)) if hasattr(output, "kv_indices") else list(output)


def _meant(lists: list[Tensor]) -> list[Tensor]:
    """Counts and indices of blocks in turn; 0 for indices beyond the count, which say nothing."""
    for i in range(0, len(lists), 2):
        column = torch.arange(lists[i + 1].size(-1), device=lists[i].device)
        lists[i + 1] = lists[i + 1].where(column < lists[i][..., None], 0)
    return lists


def _pack(tokens: int, device: torch.device) -> Tensor:
    return make_cu_seqlens(pack_lengths(tokens, _MEAN), device)


def _packed_metadata(tokens: int, device: torch.device) -> Call:
    from dsm_engine.ops.packed_metadata import packed_metadata

    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, 100_000, (tokens,), generator=generator).to(device)
    supervised = (torch.rand(tokens, generator=generator) < 0.5).to(device)
    cu_seqlens = _pack(tokens, device)
    return lambda: packed_metadata(cu_seqlens, ids, supervised)


def _block_mask(tokens: int, device: torch.device) -> Call:
    from dsm_engine.ops.block_mask import block_mask_lists

    cu_seqlens = _pack(tokens, device)
    return lambda: block_mask_lists(cu_seqlens, tokens)


def _dense_mask(dtype: torch.dtype, tokens: int, device: torch.device) -> Call:
    from dsm_engine.ops.dense_mask import dense_mask

    cu_seqlens = _pack(tokens, device)
    return lambda: dense_mask(cu_seqlens, tokens, dtype=dtype)


def _context_parallel_split(tokens: int, device: torch.device) -> Call:
    from dsm_engine.ops.context_parallel import context_parallel_split

    multiple = 2 * _CP_SIZE
    lengths = pack_lengths(tokens, _MEAN)
    num_slots = sum(-(-length // multiple) * multiple for length in lengths)
    cu_seqlens = make_cu_seqlens(lengths, device)
    return lambda: context_parallel_split(cu_seqlens, tokens, cp_size=_CP_SIZE, num_slots=num_slots)


def _segment_loss(tokens: int, device: torch.device) -> Call:
    from dsm_engine.ops.segment_loss import segment_loss

    generator = torch.Generator().manual_seed(tokens)
    losses = torch.rand(tokens, generator=generator).to(device)
    weights = (torch.rand(tokens, generator=generator) < 0.5).float().to(device)
    cu_seqlens = _pack(tokens, device)
    shape = len(cu_seqlens) - 1, _SLICES_OF_A_DOCUMENT
    slices = torch.randint(-1, _NUM_SLICES, shape, generator=generator, dtype=torch.int32)
    slices = slices.to(device)
    return lambda: segment_loss(losses, weights, cu_seqlens, slices, _NUM_SLICES)


_DTYPES = {"bool": torch.bool, "bf16": torch.bfloat16, "fp32": torch.float32}
OPERATORS: dict[str, Operator] = {
    "packed_metadata": _packed_metadata,
    "context_parallel_split": _context_parallel_split,
    "segment_loss": _segment_loss,
    "block_mask": _block_mask,
    **{f"dense_mask_{name}": partial(_dense_mask, dtype) for name, dtype in _DTYPES.items()},
}
