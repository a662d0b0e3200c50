"""The parts of the isolation check: what is changed, what counts as equal, what is put together."""

import math
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import NO_LABEL
from dsm_engine.errors import DsmError
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.training.deterministic import deterministic_mode
from dsm_engine.training.isolation.comparison import (
    Agreement,
    Comparison,
    Movement,
    furthest,
    relative_difference,
)
from dsm_engine.training.isolation.numbers import (
    INPUT_GRADIENTS,
    KEYS,
    KINDS,
    LOGITS,
    PassNumbers,
    TokenNumbers,
)
from dsm_engine.training.isolation.packs import (
    Pack,
    PackDocument,
    choose_documents,
    choose_packs,
    document_alone,
    with_changed_document,
)
from dsm_engine.training.isolation.report import PackResult, merge_ranks
from dsm_engine.training.stream import MicroBatch

VOCABULARY = 11


def _documents(*lengths: int, padding: bool = True) -> tuple[PackDocument, ...]:
    documents, start = [], 0
    for place, length in enumerate(lengths):
        documents.append(
            PackDocument(
                name=f"document {place}",
                start=start,
                end=start + length,
                is_supervised=True,
                is_padding=padding and place == len(lengths) - 1,
            )
        )
        start += length
    return tuple(documents)


def _pack(lengths: list[int]) -> Pack:
    """Every token that has a next one in its document is supervised."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, VOCABULARY, (1, sum(lengths)), generator=generator)
    labels = tokens.roll(-1, 1)
    labels[0, torch.tensor(lengths).cumsum(0) - 1] = NO_LABEL
    batch = MicroBatch(
        tokens=tokens,
        labels=labels,
        loss_weights=(labels != NO_LABEL).float(),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        packed_seq_params=packed_sequences(
            torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), tuple(lengths), max(lengths)
        ),
    )
    return Pack(pack_idx=0, batch=batch, documents=_documents(*lengths))


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_a_change_is_of_every_token_of_one_document_and_of_its_labels(
    lengths: list[int], data: st.DataObject
) -> None:
    pack = _pack(lengths)
    document = data.draw(st.sampled_from(pack.documents))
    changed = with_changed_document(pack, document, VOCABULARY)
    inside = torch.zeros_like(pack.batch.tokens, dtype=torch.bool)
    inside[0, document.start : document.end] = True
    assert torch.equal(changed.tokens != pack.batch.tokens, inside)
    assert int(changed.tokens.min()) >= 0 and int(changed.tokens.max()) < VOCABULARY
    following = changed.tokens.roll(-1, 1)
    expected = torch.where(pack.batch.labels == NO_LABEL, NO_LABEL, following)
    assert torch.equal(changed.labels, expected)
    assert changed.loss_weights is pack.batch.loss_weights
    assert changed.packed_seq_params is pack.batch.packed_seq_params


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    multiple_of=st.integers(1, 4),
    data=st.data(),
)
def test_a_document_alone_has_its_own_tokens_and_padding_without_labels(
    lengths: list[int], multiple_of: int, data: st.DataObject
) -> None:
    pack = _pack(lengths)
    document = data.draw(st.sampled_from(pack.documents))
    alone = document_alone(pack.batch, document, multiple_of=multiple_of)
    length = document.end - document.start
    size = alone.tokens.size(1)
    assert size % multiple_of == 0 and length <= size < length + multiple_of
    own = slice(document.start, document.end)
    assert torch.equal(alone.tokens[:, :length], pack.batch.tokens[:, own])
    assert torch.equal(alone.labels[:, :length], pack.batch.labels[:, own])
    assert alone.loss_weights.sum() == pack.batch.loss_weights[:, own].sum()
    assert (alone.labels[:, length:] == NO_LABEL).all()
    assert sum(alone.packed_seq_params.lengths) == size
    assert alone.packed_seq_params.lengths[0] == length
    assert alone.position_ids[0].tolist() == [*range(length), *range(size - length)]


@pytest.mark.parametrize(
    ("num_documents", "expected"),
    [
        (1, [0]),
        (2, [0, 8]),
        (3, [0, 7, 8]),
        (4, [0, 4, 7, 8]),
        (9, list(range(9))),
        (99, list(range(9))),
    ],
)
def test_documents_are_chosen_from_the_first_to_the_tail_padding(
    num_documents: int, expected: list[int]
) -> None:
    assert choose_documents(_documents(*[2] * 9), num_documents) == expected


def test_without_tail_padding_the_last_document_is_chosen() -> None:
    assert choose_documents(_documents(*[2] * 9, padding=False), 3) == [0, 4, 8]


def test_packs_with_the_most_documents_are_chosen() -> None:
    packs = build_pack_index([8, 8, 1, 1, 1, 8, 4, 4], capacity=8, strategy="best_fit", seed=1)
    sizes = [len(packs.pack(pack_idx)) for pack_idx in choose_packs(packs, 9)]
    assert sizes == sorted(sizes, reverse=True) == [3, 2]
    assert choose_packs(packs, 1) == choose_packs(packs, 9)[:1]


def test_packs_of_one_document_are_refused() -> None:
    packs = build_pack_index([8, 8, 5], capacity=8, strategy="best_fit", seed=1)
    with pytest.raises(DsmError, match=r"every pack of 8 tokens holds one document: .*isolate"):
        choose_packs(packs, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_compared_not_values(dtype: torch.dtype) -> None:
    comparison = Comparison(rank=0)
    before = torch.tensor([math.nan, 0.0, 1.0, 2.0, math.inf], dtype=dtype)
    comparison.compare(before, before.clone(), LOGITS, "a", "b")
    assert not comparison.movements
    after = before.clone()
    after[1] = -0.0
    comparison.compare(before, after, LOGITS, "a", "b")
    after[3] = torch.nextafter(after[3].float(), torch.tensor(3.0)).to(dtype) + 2.0**-6
    comparison.compare(before, after, LOGITS, "a", "b")
    assert [movement.num_moved for movement in comparison.movements] == [1, 2]
    assert comparison.movements[1].largest == pytest.approx(2.0**-6, rel=1e-3)
    assert comparison.num_compared[LOGITS] == 15


def test_a_number_that_became_nan_has_moved_whatever_the_bound() -> None:
    before, after = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])
    for allowed in (0.0, 1.0):
        comparison = Comparison(rank=0)
        comparison.compare(before, after, LOGITS, "a", "b", allowed)
        assert [movement.num_moved for movement in comparison.movements] == [1]
        assert math.isnan(comparison.movements[0].largest)


def _numbers(values: Tensor, first_token: int) -> TokenNumbers:
    return TokenNumbers(values=values, slots=torch.arange(first_token, first_token + len(values)))


def _gradients(values: Tensor, first_token: int) -> PassNumbers:
    return PassNumbers(tokens={INPUT_GRADIENTS: _numbers(values, first_token)})


def test_a_rank_without_the_whole_document_need_not_see_its_gradients_change() -> None:
    documents = _documents(3, 4, padding=False)
    for first_token, num_tokens, unreached in ((0, 7, 1), (2, 5, 0), (4, 3, 0)):
        comparison = Comparison(rank=1)
        numbers = _gradients(torch.zeros(num_tokens, 2), first_token)
        comparison.compare_tokens(numbers, numbers, documents, documents[0])
        assert len(comparison.unreached) == unreached
        assert not comparison.movements


def test_relative_differences_of_zeros_and_nans_are_told_apart() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert relative_difference(zero, zero) == 0.0
    assert relative_difference(one, zero) == math.inf
    assert relative_difference(one * 1.5, one) == pytest.approx(0.5)
    agreement = furthest({"a": 0.5, "b": relative_difference(one * math.nan, one)}, 1.0, rank=0)
    assert agreement.where == "b" and not agreement.holds


def test_a_rank_gives_the_tokens_that_it_has() -> None:
    second_half = _numbers(torch.arange(4, 8), 4)
    assert second_half.of(0, 4).tolist() == []
    assert second_half.of(2, 6).tolist() == [4, 5]
    assert second_half.of(6, 8).tolist() == [6, 7]
    first_of_two = TokenNumbers(values=torch.arange(6), slots=torch.tensor([0, 3, 4, 5, 10, 11]))
    assert first_of_two.of(0, 4).tolist() == [0, 1]
    assert first_of_two.of(4, 12).tolist() == [2, 3, 4, 5]
    assert first_of_two.has(3) and not first_of_two.has(2)


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_mode_is_left_as_it_was_found(
    workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    if workspace is not None:
        monkeypatch.setenv(name, workspace)
    with pytest.raises(ZeroDivisionError), deterministic_mode():
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[name] == (workspace or ":4096:8")
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get(name) == workspace


def test_what_ranks_found_is_put_together_by_pack_and_precision() -> None:
    def result(rank: int, worst: float) -> PackResult:
        moved = Movement(
            changed="a", moved="b", kind=LOGITS, num_moved=2, num_compared=5, largest=1.0, rank=rank
        )
        return PackResult(
            precision="fp32",
            pack_idx=3,
            num_documents=2,
            changed=("a",),
            num_compared=dict.fromkeys(KINDS, 5),
            movements=(moved,) * rank,
            unreached=(),
            unrepeated=(),
            agreements={LOGITS: Agreement(worst=worst, where="b", bound=0.1, rank=rank)},
        )

    other = replace(result(0, 0.0), precision="bf16")
    merged, apart = merge_ranks([result(0, 0.2), other, result(1, 0.3)])
    assert merged.num_compared[LOGITS] == 10 and merged.num_moved(LOGITS) == 2
    assert merged.agreements[LOGITS].rank == 1
    assert "by up to 1, on rank 1" in (merged.failure or "")
    assert apart == other


def test_a_kind_that_one_stage_alone_has_is_kept_and_the_furthest_beyond_its_bound_counts() -> None:
    def result(**agreements: Agreement) -> PackResult:
        return PackResult(
            precision="fp32",
            pack_idx=3,
            num_documents=2,
            changed=("a",),
            num_compared=dict.fromkeys(KINDS, 5),
            movements=(),
            unreached=(),
            unrepeated=(),
            agreements={kind.replace("_", " "): each for kind, each in agreements.items()},
        )

    first = result(rotated_keys=Agreement(worst=0.2, where="a", bound=0.1, rank=0))
    last = result(
        rotated_keys=Agreement(worst=0.3, where="b", bound=0.4, rank=1),
        logits=Agreement(worst=0.0, where="b", bound=0.1, rank=1),
    )
    for ranks in ([first, last], [last, first]):
        (merged,) = merge_ranks(ranks)
        assert list(merged.agreements) == [LOGITS, KEYS]
        assert merged.agreements[KEYS].rank == 0
        assert "rotated keys of a by 0.2" in (merged.failure or "")
