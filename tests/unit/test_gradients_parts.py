"""The parts of the comparison of gradients: the batch's documents, its splits, and the verdict."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import NO_LABEL, PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.gradients.batch import BatchDocument, pack_of, read_documents
from dsm_engine.training.gradients.report import PrecisionResult, SplitResult, merge_ranks
from dsm_engine.training.gradients.splits import Split, micro_batches_of_a_rank, splits_of
from dsm_engine.training.isolation.comparison import Agreement
from dsm_engine.training.step import LossSum
from dsm_engine.training.stream import MicroBatch, PackStream, to_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "packing",
    [
        {"strategy": "random"},
        {"strategy": "balanced", "alignment": 8},
        {"strategy": "concat_split", "capacity": 64},
        {"strategy": "best_fit", "overlong": "truncate", "capacity": 64},
    ],
)
def test_documents_of_a_batch_are_what_the_reader_of_packs_gives(
    sample_data: Path, packing: dict[str, Any]
) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    packs = build_pack_index(dataset.lengths, **{"capacity": 256, "seed": 3, **packing})
    reader = PackReader(dataset, packs, pad_id=0)
    chosen = [0, packs.num_packs // 2, packs.num_packs - 1]
    for pack_idx, documents in zip(chosen, read_documents(dataset, packs, chosen), strict=True):
        read = to_device(reader.read(pack_idx), CPU)
        made = pack_of(documents, width=packs.capacity, device=CPU)
        for name in ("tokens", "labels", "loss_weights", "position_ids"):
            assert torch.equal(getattr(made, name), getattr(read, name)), name
        assert made.packed_seq_params.lengths == read.packed_seq_params.lengths
        assert made.packed_seq_params.max_seqlen_q == read.packed_seq_params.max_seqlen_q
        assert made.divisor == int(read.loss_weights.sum())
        ends = read.packed_seq_params.cu_seqlens_q
        assert torch.equal(made.packed_seq_params.cu_seqlens_q, ends)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"data__strategy": "balanced"}])
def test_every_split_holds_every_document_once_whatever_the_ranks(
    sample_data: Path, make_recipe: Any, one_rank: Any, ranks: int, changes: dict[str, Any]
) -> None:
    values = make_recipe(sample_data, Path("unused"), data__seq_length=256, **changes)
    recipe = TrainRecipe.model_validate(values)
    dataset = TokenizedDataset(recipe.data.train)
    packs = build_pack_index(
        dataset.lengths, capacity=256, strategy=recipe.data.strategy, seed=recipe.seed
    )
    by_split: dict[str, list[list[MicroBatch]]] = {}
    documents: list[list[BatchDocument]] = []
    for rank in range(ranks):
        context = replace(one_rank, dp_rank=rank, dp_size=ranks)
        stream = PackStream(dataset, packs, pad_id=0, seed=recipe.seed, context=context)
        indices = stream.packs_of_step(0, 4)
        documents = read_documents(dataset, packs, indices)
        for split in splits_of(recipe, stream, indices, documents, context):
            batches = list(split.micro_batches())
            assert len(batches) == split.num_micro_batches
            assert {batch.tokens.size(1) for batch in batches} == {split.width}
            by_split.setdefault(split.name, []).append(batches)
    expected = Counter(
        (tuple(document.tokens.tolist()), tuple(document.labels.tolist()))
        for document in itertools.chain.from_iterable(documents)
    )
    for name, shares in by_split.items():
        assert len({len(share) for share in shares}) == 1, "ranks take as many micro-batches"
        assert _documents(itertools.chain.from_iterable(shares)) == expected, name
    assert len(by_split) == 5
    assert len({len(shares[0]) for shares in by_split.values()}) > 1, "one number of micro-batches"


def test_an_interleaved_pipeline_gets_micro_batches_in_groups(one_rank: Any) -> None:
    interleaved = replace(one_rank, dp_size=2, pp_size=4, vp_size=2)
    assert [micro_batches_of_a_rank(n, interleaved) for n in (1, 8, 9)] == [4, 4, 8]
    assert micro_batches_of_a_rank(9, replace(interleaved, vp_size=1)) == 5


def _documents(batches: Any) -> Counter[Any]:
    """What has a loss in the micro-batches, by document."""
    found: Counter[Any] = Counter()
    for batch in batches:
        lengths = batch.packed_seq_params.lengths
        parts = (tensor[0].split(lengths) for tensor in (batch.tokens, batch.labels))
        weights = batch.loss_weights[0].split(lengths)
        for tokens, labels, weight in zip(*parts, weights, strict=True):
            if weight.any():
                assert torch.equal(weight > 0, labels != NO_LABEL)
                found[tuple(tokens.tolist()), tuple(labels.tolist())] += 1
    return found


def _loss(total: float, num_tokens: int) -> LossSum:
    return LossSum(weighted_total=total, divisor=num_tokens, total=total, num_tokens=num_tokens)


def _result(**changes: Any) -> PrecisionResult:
    values: dict[str, Any] = {
        "precision": "fp32",
        "attention": "split",
        "num_supervised": 10,
        "divisor": 10,
        "loss": _loss(20.0, 10),
        "loss_bound": 1e-6,
        "is_zero": False,
        "splits": (_split(), _split(name="b")),
        "unrepeated": (),
    }
    return PrecisionResult(**{**values, **changes})


def _split(**changes: Any) -> SplitResult:
    values: dict[str, Any] = {
        "name": "a",
        "width": 4,
        "num_micro_batches": 2,
        "loss": _loss(20.00001, 10),
        "gradient": Agreement(worst=1e-7, where="x", bound=1e-6, rank=0),
    }
    return SplitResult(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, None),
        ({"loss": _loss(math.nan, 10)}, "the loss is nan"),
        ({"is_zero": True}, "the gradient of the batch is 0"),
        ({"unrepeated": ("gradient of x",)}, "two runs of the a differ in the gradient of x"),
        ({"loss": _loss(20.0, 9)}, "documents summed one by one: 9 super"),
        ({"splits": (_split(loss=_loss(20.0, 11)),)}, "a: 11 supervised"),
        ({"splits": (_split(loss=replace(_loss(20.0, 10), divisor=9)),)}, "9 in the divisor were"),
        ({"splits": (_split(loss=replace(_loss(20.0, 10), total=19.0)),)}, "a: the loss sum 20"),
        ({"splits": (_split(loss=replace(_loss(20.0, 10), total=math.nan)),)}, "apart nan of it"),
        ({"splits": (_split(loss=_loss(20.1, 10)),)}, "a: the loss sum 20.1"),
        ({"splits": (_split(loss=_loss(math.nan, 10)),)}, "sum nan is not"),
        (
            {"splits": (_split(gradient=Agreement(worst=math.inf, where="x", bound=1, rank=3)),)},
            "the gradient of x is apart from the documents' by inf of its norm (bound 1), on rank",
        ),
    ],
)
def test_every_kind_of_difference_is_said(changes: dict[str, Any], part: str | None) -> None:
    failure = _result(**changes).failure
    assert failure is None if part is None else part in str(failure)


def test_what_ranks_found_is_put_together_by_split() -> None:
    far = Agreement(worst=0.5, where="y", bound=1e-6, rank=1)
    other = _result(splits=(_split(), _split(name="b", gradient=far)), is_zero=True)
    for ranks in ([_result(), other], [other, _result()]):
        merged = merge_ranks(ranks)
        assert not merged.is_zero, "a rank may hold rows of an embedding that no token has"
        assert merged.splits[0].gradient.worst == 1e-7
        assert merged.splits[1].gradient == far
    assert merge_ranks([_result(), _result(unrepeated=("x",))]).unrepeated == ("x",)


def test_a_rank_with_a_smaller_share_fills_it_up_without_a_loss() -> None:
    batch = pack_of([], width=4, device=CPU)
    with_loss = replace(batch, loss_weights=torch.ones(1, 4))
    split = Split(
        name="a",
        width=4,
        num_micro_batches=3,
        own=lambda: iter([with_loss]),
        spare=lambda: with_loss,
    )
    assert [float(each.loss_weights.sum()) for each in split.micro_batches()] == [4, 0, 0]
