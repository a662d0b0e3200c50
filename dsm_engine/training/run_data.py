"""The data of a run, opened and checked against each other, the tokenizer and the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_engine.data.pack_file import load_pack_index
from dsm_engine.data.pack_index import PackIndex, PackStrategy, build_pack_index
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer, dataset_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.model.config import ModelConfig
from dsm_engine.training.config import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run trains on and validates with."""

    tokenizer: Tokenizer
    train: TokenizedDataset
    train_packs: PackIndex
    validation: TokenizedDataset | None
    validation_packs: PackIndex | None

    def stream_identity(self, recipe: TrainRecipe) -> dict[str, Any]:
        """What fixes which examples each step trains on; a resumed run must have the same."""
        return {
            "dataset": " ".join(file["xxh3"] for file in self.train.manifest["files"].values()),
            "packs": f"{self.train_packs.content_xxh3():016x}",
            "order_seed": recipe.seed,
            "seq_length": recipe.data.seq_length,
            "global_batch_size": recipe.training.global_batch_size,
        }


def open_run_data(recipe: TrainRecipe, model: ModelConfig) -> RunData:
    """Opens the datasets and packs of a recipe.

    Raises DsmError where one is missing or damaged, was made with another tokenizer or for other
    documents, or does not fit the model.
    """
    train_set = TokenizedDataset(recipe.data.train)
    tokenizer = dataset_tokenizer(recipe.data.train, train_set.manifest, recipe.data.tokenizer)
    _refuse_small_model(recipe, model, train_set, tokenizer)
    validation, validation_packs = None, None
    if recipe.data.validation is not None:
        validation = TokenizedDataset(recipe.data.validation)
        dataset_tokenizer(recipe.data.validation, validation.manifest, tokenizer.path)
        validation_packs = _build(recipe, recipe.data.validation, validation, "best_fit", seed=0)
    return RunData(
        tokenizer=tokenizer,
        train=train_set,
        train_packs=training_packs(recipe, train_set),
        validation=validation,
        validation_packs=validation_packs,
    )


def _refuse_small_model(
    recipe: TrainRecipe, model: ModelConfig, dataset: TokenizedDataset, tokenizer: Tokenizer
) -> None:
    if tokenizer.vocab_size > model.vocab_size:
        raise DsmError(
            f"model.vocab_size {model.vocab_size} is smaller than the {tokenizer.vocab_size} ids "
            f"of {tokenizer.path}; raise it"
        )
    # Positions count inside a pack, whatever becomes of documents that are longer.
    longest = min(int(dataset.lengths.max(initial=0)), recipe.data.seq_length)
    if longest > model.max_position_embeddings:
        raise DsmError(
            f"{recipe.data.train}: has a document of {longest:,} tokens, the model is meant for "
            f"{model.max_position_embeddings:,} (model.max_position_embeddings); raise that, or "
            f"preprocess with a lower max_tokens"
        )


def training_packs(recipe: TrainRecipe, dataset: TokenizedDataset) -> PackIndex:
    """The recipe's pack index, or the one its settings give.

    Raises DsmError where an index does not belong to the dataset, or none can be built.
    """
    data = recipe.data
    if data.packs is None:
        return _build(recipe, data.train, dataset, data.strategy, seed=recipe.seed)
    packs = load_pack_index(data.packs)
    if packs.capacity != data.seq_length:
        raise DsmError(
            f"{data.packs}: packs hold {packs.capacity} tokens, data.seq_length is "
            f"{data.seq_length}; build the index again or change data.seq_length"
        )
    if not packs.matches(dataset.lengths):
        raise DsmError(
            f"{data.packs}: was built for other documents than those of {data.train}; build it "
            f"again with dsm pack"
        )
    return packs


def _build(
    recipe: TrainRecipe,
    prefix: Path,
    dataset: TokenizedDataset,
    strategy: PackStrategy,
    *,
    seed: int,
) -> PackIndex:
    data = recipe.data
    try:
        return build_pack_index(
            dataset.lengths,
            capacity=data.seq_length,
            strategy=strategy,
            seed=seed,
            alignment=data.alignment,
            overlong=data.overlong,
        )
    except DsmError as error:
        raise DsmError(f"{prefix}: {error}") from error
