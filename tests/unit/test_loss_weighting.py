"""Loss weights: what counts alike, whoever computes it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.training.weighting import StepWeights

CAPACITY = 96  # shorter than many an example


def _reader(data: Path, strategy: Any) -> PackReader:
    dataset = TokenizedDataset(data / "train")
    packs = build_pack_index(
        dataset.lengths, capacity=CAPACITY, strategy=strategy, seed=1, overlong="truncate"
    )
    return PackReader(dataset, packs, pad_id=0)


def _weighed(reader: PackReader, weighting: Any, places: list[int]) -> tuple[Any, int]:
    """(example, weight) of every supervised token of a step, and the divisor."""
    step = StepWeights(weighting, reader, places)
    tokens, divisor = [], 0
    times: dict[int, int] = defaultdict(int)
    for place, pack_idx in enumerate(places):
        batch = reader.read(pack_idx)
        weighed = step.of_pack(place, batch)
        divisor += weighed.divisor
        assert weighed.weights.dtype == np.float32
        assert ((weighed.weights > 0) == (batch.loss_weights > 0)).all()
        for token in np.flatnonzero(batch.loss_weights).tolist():
            document = int(batch.document_idx[batch.document_ids[token]])
            tokens.append(((document, times[pack_idx]), place, float(weighed.weights[token])))
        times[pack_idx] += 1
    return tokens, divisor


def _sums(tokens: Any, key: Any) -> dict[Any, float]:
    sums: dict[Any, float] = defaultdict(float)
    for example, place, weight in tokens:
        sums[key(example, place)] += weight
    return sums


@pytest.mark.parametrize("strategy", ["random", "concat_split"])
def test_every_document_of_a_pack_counts_one(sample_data: Path, strategy: str) -> None:
    reader = _reader(sample_data, strategy)
    tokens, divisor = _weighed(reader, "document", [3, 0, 4, 5])
    sums = _sums(tokens, lambda example, place: (example, place))
    assert list(sums.values()) == pytest.approx([1.0] * divisor, rel=1e-6)


def test_every_example_counts_one_however_it_was_cut(sample_data: Path) -> None:
    reader = _reader(sample_data, "concat_split")
    places = [*range(40, 20, -1), 3, 50]  # neighbours share the examples on their edges
    tokens, divisor = _weighed(reader, "example", places)
    sums = _sums(tokens, lambda example, _: example)
    assert list(sums.values()) == pytest.approx([1.0] * divisor, rel=1e-6)
    pieces = _weighed(reader, "document", places)[1]
    assert divisor < pieces, "no example was cut: nothing was tested"
    weights = defaultdict(set)
    for example, _, weight in tokens:
        weights[example].add(weight)
    assert all(len(values) == 1 for values in weights.values()), "tokens of an example count alike"


def test_a_pack_that_comes_twice_holds_its_examples_twice(sample_data: Path) -> None:
    reader = _reader(sample_data, "concat_split")
    once, divisor = _weighed(reader, "example", [3, 4])
    twice, double = _weighed(reader, "example", [3, 4, 4, 3])
    assert double == 2 * divisor and len(twice) == 2 * len(once)
    assert sorted(weight for _, _, weight in twice) == sorted(
        weight for _, _, weight in once for _ in range(2)
    )


def test_without_cuts_examples_are_documents(sample_data: Path) -> None:
    reader = _reader(sample_data, "best_fit")
    assert _weighed(reader, "example", [0, 1, 2]) == _weighed(reader, "document", [0, 1, 2])


def test_tokens_count_alike(sample_data: Path) -> None:
    tokens, divisor = _weighed(_reader(sample_data, "concat_split"), "token", [0, 1, 2])
    assert divisor == len(tokens)
    assert {weight for _, _, weight in tokens} == {1.0}
