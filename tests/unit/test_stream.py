"""The stream of packs: what a step trains on, and how data-parallel ranks share it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dsm_engine.data.pack_index import STRATEGIES, build_pack_index, deal_packs
from dsm_engine.data.packed_batch import PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.loop import train
from dsm_engine.training.stream import PackStream

BATCH = 8


def _streams(dataset: TokenizedDataset, strategy: Any, ranks: int) -> list[PackStream]:
    packs = build_pack_index(dataset.lengths, capacity=512, strategy=strategy, seed=1)
    return [
        PackStream(
            dataset,
            packs,
            pad_id=0,
            seed=3,
            context=cast(
                Any,
                SimpleNamespace(
                    dp_rank=rank,
                    dp_size=ranks,
                    cp_rank=0,
                    cp_size=1,
                    device=torch.device("cpu"),
                ),
            ),
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_packs_of_a_step(sample_data: Path, strategy, ranks: int) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    streams = _streams(dataset, strategy, ranks)
    packs = streams[0].packs_of_step(1, BATCH)
    assert all(stream.packs_of_step(1, BATCH) == packs for stream in streams)
    shares = [[batch.tokens for batch in stream.micro_batches(packs)] for stream in streams]
    assert all(len(share) == BATCH // ranks for share in shares)
    (alone,) = _streams(dataset, strategy, 1)
    whole = [batch.tokens for batch in alone.micro_batches(packs)]
    assert sorted(tuple(t.flatten().tolist()) for share in shares for t in share) == sorted(
        tuple(t.flatten().tolist()) for t in whole
    )


@pytest.mark.parametrize("strategy", ["random", "balanced"])
def test_packs_read_ahead_are_those_read_when_asked_for(sample_data: Path, strategy) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    steps = range(1, 4)
    asked, ahead = (_streams(dataset, strategy, 2)[1] for _ in range(2))
    ahead.read_ahead(steps, BATCH)
    kept = []
    for step in steps:
        for stream in (asked, ahead):
            kept.append(list(stream.micro_batches(stream.packs_of_step(step, BATCH))))
    # All are compared at the end: a buffer that was filled again would show.
    for expected, found in zip(kept[::2], kept[1::2], strict=True):
        assert len(found) == BATCH // 2
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine.tokens, other.tokens)
            assert torch.equal(mine.loss_weights, other.loss_weights)
            assert mine.packed_seq_params.cu_seqlens_q.tolist() == list(
                other.packed_seq_params.cu_seqlens_q
            )
    ahead.close()


def test_a_step_out_of_turn_is_read_all_the_same(sample_data: Path) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    asked, ahead = (_streams(dataset, "random", 1)[0] for _ in range(2))
    ahead.read_ahead(range(9), BATCH)
    for step in (0, 5, 1):
        expected, found = (
            [batch.tokens[0].tolist() for batch in s.micro_batches(s.packs_of_step(step, BATCH))]
            for s in (asked, ahead)
        )
        assert found == expected
    ahead.close()


def test_balanced_packs_are_dealt_by_their_cost(sample_data: Path) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    streams = _streams(dataset, "balanced", 2)
    packs = build_pack_index(dataset.lengths, capacity=512, strategy="balanced", seed=1)
    costs = packs.totals(dataset.lengths).costs(packs.cost)
    in_turn = False
    for step in range(3):
        chosen = streams[0].packs_of_step(step, BATCH)
        dealt = [chosen[i] for i in deal_packs(costs[chosen], 2).tolist()]
        in_turn |= dealt == chosen
        for rank, stream in enumerate(streams):
            read = [batch.tokens[0].tolist() for batch in stream.micro_batches(chosen)]
            reader = PackReader(dataset, packs, pad_id=0)
            assert read == [reader.read(p).tokens.tolist() for p in dealt[rank::2]]
    assert not in_turn


@pytest.mark.parametrize(
    "data",
    [
        {"strategy": "concat_split"},
        {"strategy": "balanced", "alignment": 8},
        {"strategy": "first_fit_shuffle", "overlong": "truncate", "seq_length": 64},
    ],
)
def test_every_packing_can_be_trained_on(
    tmp_path: Path, sample_data: Path, make_recipe, data: dict
) -> None:
    values = make_recipe(sample_data, tmp_path / "run", training__steps=2)
    values["data"] |= data
    values["model"]["max_position_embeddings"] = values["data"]["seq_length"]
    values["logging"]["validate_every"] = 2
    train(TrainRecipe.model_validate(values))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("step") == 2 and "validation" in kinds


def test_an_overlong_validation_set_is_named(
    tmp_path: Path, sample_data: Path, make_recipe
) -> None:
    values = make_recipe(sample_data, tmp_path / "run")
    values["data"] |= {"strategy": "concat_split", "seq_length": 64}
    with pytest.raises(DsmError, match=r"validation: cannot pack: document \d+ has"):
        train(TrainRecipe.model_validate(values))
