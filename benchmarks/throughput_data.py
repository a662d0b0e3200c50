"""Synthetic packs for bench_throughput: random tokens in documents as long as real ones.

  python benchmarks/throughput_data.py data/training_set
prints the quantiles of a tokenized dataset's lengths. Those below are of tests/training_set.yaml
(42,692 worked solutions in English and Chinese, 100,000-token DeepSeek tokenizer) with its
sections `verification` and `decontamination` left out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.pack_index import PackIndex, build_pack_index
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.model.config import ModelConfig
from dsm_engine.training.config import TrainRecipe

SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
QUANTILES = (43, 62, 76, 86, 103, 121, 141, 162, 189, 225, 293, 438, 569, 934, 1615, 3015)
_MOST_PACKS = 2048  # more steps go through them again, in another order


@dataclass(frozen=True, kw_only=True)
class ThroughputData:
    """What a throughput run trains on."""

    train: TokenizedDataset
    train_packs: PackIndex
    pad_id: int
    kind: str
    """`synthetic` or `real`."""


def synthetic_data(
    recipe: TrainRecipe, model: ModelConfig, *, num_packs: int, folder: Path
) -> ThroughputData:
    """Packs by the recipe's seed, strategy and alignment; files in `folder`, the same on all ranks.

    Every token but a document's first is supervised. Documents are cut at the pack's capacity.
    """
    data = recipe.data
    random = np.random.Generator(np.random.PCG64(recipe.seed))
    wanted = min(num_packs, _MOST_PACKS) * data.seq_length
    lengths = draw_lengths(random, num_tokens=wanted, longest=data.seq_length)
    prefix = folder / "synthetic"
    with TokenizedDatasetWriter(prefix, vocab_size=model.vocab_size) as writer:
        for length in lengths.tolist():
            writer.add(
                random.integers(model.vocab_size, size=length),
                [(1, length)] if length > 1 else [],
                id="",
                source="synthetic",
                language="",
                format="",
                topic="",
            )
        writer.finish()
    packs = build_pack_index(
        lengths,
        capacity=data.seq_length,
        strategy=data.strategy,
        seed=recipe.seed,
        alignment=data.alignment,
    )
    return ThroughputData(
        train=TokenizedDataset(prefix), train_packs=packs, pad_id=0, kind="synthetic"
    )


def draw_lengths(
    random: np.random.Generator, *, num_tokens: int, longest: int
) -> NDArray[np.int32]:
    """Lengths of documents with at least `num_tokens` tokens in all, [n]: QUANTILES read backwards,
    straight lines between them."""
    mean = np.interp(np.linspace(0, 1, 10_001), SHARES, QUANTILES).mean()
    lengths = np.empty(0, np.int32)
    while lengths.sum() < num_tokens:
        shares = random.random(int(num_tokens / mean) + 1)
        drawn = np.rint(np.interp(shares, SHARES, QUANTILES)).astype(np.int32)
        lengths = np.concatenate([lengths, np.minimum(drawn, longest)])
    return lengths


def main() -> None:
    lengths = TokenizedDataset(Path(sys.argv[1])).lengths
    print(f"{len(lengths):,} documents, {lengths.mean():.1f} tokens on average")
    print(tuple(np.quantile(lengths, SHARES, method="lower").tolist()))


if __name__ == "__main__":
    main()
