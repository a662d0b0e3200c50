"""Packs dealt to the ranks of context parallelism: nothing lost, and each rank's share in order."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsm_engine.errors import DsmError
from dsm_engine.ops.context_parallel import (
    context_parallel_slots,
    context_parallel_split,
    context_parallel_split_reference,
)
from dsm_engine.ops.library import cuda_core


def _random_cu_seqlens(generator: torch.Generator, num_tokens: int) -> torch.Tensor:
    num_cuts, padding = (int(torch.randint(0, most, (), generator=generator)) for most in (30, 4))
    cuts = torch.randint(0, num_tokens + 1, (num_cuts,), generator=generator).sort().values
    return torch.tensor([0, *cuts.tolist(), *[num_tokens] * (1 + padding)], dtype=torch.int32)


def _slots_that_suffice(cu_seqlens: torch.Tensor, cp_size: int) -> int:
    return context_parallel_slots(int(cu_seqlens[-1]), len(cu_seqlens) - 1, cp_size)


@pytest.mark.parametrize("cp_size", [1, 2, 3, 4, 8])
def test_splits_equal_the_reference_on_random_packs(cp_size) -> None:
    generator = torch.Generator().manual_seed(cp_size)
    for num_tokens in (1, 2, 15, 16, 17, 128, 333):
        for extra in (0, 1, 5):
            cu_seqlens = _random_cu_seqlens(generator, num_tokens)
            num_slots = _slots_that_suffice(cu_seqlens, cp_size) + extra * 2 * cp_size
            options = {"cp_size": cp_size, "num_slots": num_slots}
            found = context_parallel_split(cu_seqlens, num_tokens, **options)
            expected = context_parallel_split_reference(cu_seqlens, num_tokens, **options)
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs)
                assert ours.dtype == theirs.dtype


def test_a_pack_written_by_hand() -> None:
    # Two ranks: documents of 5 and 2 tokens padded to 8 and 4, then a tail of 4.
    split = context_parallel_split(
        torch.tensor([0, 5, 7], dtype=torch.int32), 7, cp_size=2, num_slots=16
    )
    assert split.cu_seqlens_padded.tolist() == [0, 8, 12]
    assert split.token_idx.tolist() == [
        [0, 1, -1, -1, 5, -1, -1, -1],
        [2, 3, 4, -1, 6, -1, -1, -1],
    ]
    assert split.position_ids.tolist() == [[0, 1, 6, 7, 0, 3, 0, 3], [2, 3, 4, 5, 1, 2, 1, 2]]
    assert split.inverse.tolist() == [0, 1, 8, 9, 10, 4, 12]


@pytest.mark.parametrize("cp_size", [1, 2, 4])
def test_the_order_is_that_of_transformer_engine(cp_size) -> None:
    # thd_get_partitioned_indices takes padded documents: of rank r's tokens of a document the
    # first half begins at chunk r, the second at chunk 2 * cp_size - 1 - r.
    lengths = torch.tensor([8, 24, 16, 0, 40]) * cp_size
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    num_tokens = int(cu_seqlens[-1])
    split = context_parallel_split(cu_seqlens, num_tokens, cp_size=cp_size, num_slots=num_tokens)
    assert torch.equal(split.cu_seqlens_padded, cu_seqlens)
    for rank in range(cp_size):
        expected = []
        for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
            chunk = (end - begin) // (2 * cp_size)
            for i in (rank, 2 * cp_size - 1 - rank):
                expected += range(begin + i * chunk, begin + (i + 1) * chunk)
        assert split.token_idx[rank].tolist() == expected


@pytest.mark.parametrize("cp_size", [1, 2, 4])
def test_values_and_gradients_come_back_from_the_ranks(cp_size) -> None:
    generator = torch.Generator().manual_seed(cp_size)
    cu_seqlens = _random_cu_seqlens(generator, 101)
    num_slots = _slots_that_suffice(cu_seqlens, cp_size)
    split = context_parallel_split(cu_seqlens, 101, cp_size=cp_size, num_slots=num_slots)
    hidden = torch.randn(101, 4, generator=generator, requires_grad=True)
    padded = torch.nn.functional.pad(hidden, (0, 0, 0, 1))  # the row that -1 names
    on_ranks = padded[split.token_idx]  # [cp_size, slots, 4]
    assert not on_ranks[split.token_idx < 0].any()
    back = on_ranks.flatten(0, 1)[split.inverse]
    assert torch.equal(back, hidden)
    weights = torch.randn(101, 4, generator=generator)
    (gradient,) = torch.autograd.grad(back, hidden, weights)
    assert torch.equal(gradient, weights)


def test_one_rank_holds_the_padded_documents_in_order() -> None:
    split = context_parallel_split(
        torch.tensor([0, 3, 4], dtype=torch.int32), 4, cp_size=1, num_slots=6
    )
    assert split.token_idx.tolist() == [[0, 1, 2, -1, 3, -1]]
    assert split.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize("cp_size", [1, 2, 5])
def test_the_bound_of_slots_is_reached_and_never_passed(cp_size) -> None:
    multiple = 2 * cp_size
    for num_tokens in range(12):
        for num_documents in range(1, 6):
            # As many tokens as there are to documents of one, which take the most padding.
            alone = min(num_documents, num_tokens)
            lengths = [1] * alone + [0] * (num_documents - alone)
            lengths[0] += num_tokens - alone
            needed = sum(-(-length // multiple) * multiple for length in lengths)
            assert needed <= context_parallel_slots(num_tokens, num_documents, cp_size)
    assert context_parallel_slots(3, 3, cp_size) == 3 * multiple
    assert context_parallel_slots(multiple, 1, cp_size) == multiple + (multiple - 1) // multiple


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 2, 0), "cp_size is 1 to 65536, found 0"),
        ((8, 2, -2), "cp_size is 1 to 65536, found -2"),
        ((-8, 2, 1), "num_tokens is 0 or more, found -8"),
        ((8, -2, 1), "num_documents is 0 or more, found -2"),
    ],
)
def test_a_bound_of_slots_for_no_pack_is_rejected(arguments, message) -> None:
    with pytest.raises(DsmError, match=message):
        context_parallel_slots(*arguments)


def test_the_cp_size_of_a_fake_tensor_is_checked() -> None:
    with FakeTensorMode(), pytest.raises(DsmError, match="cp_size is 1 to 65536, found 0"):
        cu_seqlens = torch.zeros(3, dtype=torch.int32)
        context_parallel_split(cu_seqlens, 7, cp_size=0, num_slots=8)


def test_a_pack_without_tokens_is_all_tail() -> None:
    split = context_parallel_split(
        torch.tensor([0, 0], dtype=torch.int32), 0, cp_size=2, num_slots=4
    )
    assert split.token_idx.tolist() == [[-1, -1], [-1, -1]]
    assert split.position_ids.tolist() == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("cp_size", "num_slots", "message"),
    [
        (2, 8, "padded to a multiple of 4, need 12 slots, found 8"),
        (2, 14, "multiple of 2 . cp_size below 2.31, found 14"),
        (2, -4, "found -4"),
        (0, 16, "cp_size is 1 to 65536, found 0"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(cp_size, num_slots, message) -> None:
    cu_seqlens = torch.tensor([0, 5, 7], dtype=torch.int32)
    with pytest.raises(DsmError, match=message):
        context_parallel_split(cu_seqlens, 7, cp_size=cp_size, num_slots=num_slots)


def test_cu_seqlens_that_are_no_pack_are_rejected() -> None:
    with pytest.raises(DsmError, match="falls at entry 2, from 3 to 2"):
        context_parallel_split(
            torch.tensor([0, 3, 2, 4], dtype=torch.int32), 4, cp_size=1, num_slots=16
        )


def test_the_operator_passes_opcheck() -> None:
    cu_seqlens = torch.tensor([0, 3, 10, 16, 16], dtype=torch.int32)
    result = torch.library.opcheck(
        torch.ops.dsm.context_parallel_split.default, (cu_seqlens, 16, 2, 32)
    )
    assert set(result.values()) == {"SUCCESS"}


def test_a_split_compiles_into_the_graph_of_what_it_gathers() -> None:
    def shares(hidden, cu_seqlens):
        split = context_parallel_split(cu_seqlens, 16, cp_size=2, num_slots=32)
        return hidden[split.token_idx.clamp(min=0)], split.position_ids

    torch._dynamo.reset()
    hidden = torch.randn(16, 3)
    cu_seqlens = torch.tensor([0, 3, 10, 16], dtype=torch.int32)
    compiled = torch.compile(shares, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(compiled(hidden, cu_seqlens), shares(hidden, cu_seqlens), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="context_parallel_split: CUDA error"):
        cuda_core.context_parallel_split(0, 3, 16, 2, 32, 0, 0, 0, 0, 0)
