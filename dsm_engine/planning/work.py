"""What a step trains on: from the dataset's packs, or from assumptions where it is absent."""

import math
from dataclasses import dataclass

from dsm_engine.data.manifest import MANIFEST_SUFFIX
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.files import read_json
from dsm_engine.model.config import ModelConfig, from_hf_config
from dsm_engine.model.flops import TrainingFlops, flops_of_sums
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.run_data import training_packs

_SIGMA = 0.7  # of the assumed lognormal lengths


@dataclass(frozen=True, kw_only=True)
class AssumedData:
    """What the data is taken to be where there is none to look at."""

    num_documents: int | None = None
    mean_length: float = 350.0
    """Tokens a document; lengths are lognormal with sigma 0.7."""
    fill: float = 0.93
    """Share of a pack's slots that holds tokens of documents; random concatenation's."""

    def __post_init__(self) -> None:
        if not 0 < self.fill <= 1:
            raise DsmError(f"the assumed fill is above 0 and at most 1, found {self.fill}")
        if not 1 <= self.mean_length < 1e9:
            raise DsmError(f"the assumed mean length is 1 token or more, found {self.mean_length}")
        if self.num_documents is not None and self.num_documents < 1:
            raise DsmError(
                f"the assumed number of documents is 1 or more, found {self.num_documents}"
            )


@dataclass(frozen=True, kw_only=True)
class PackWork:
    """The mean pack, and how many an epoch has."""

    source: str
    """Where the numbers are from, in a line."""
    is_assumed: bool
    seq_length: int
    alignment: int
    """Documents take the next multiple of it in slots."""
    tokens: float
    """Of documents, a pack."""
    document_slots: float
    """With the padding of alignment, a pack."""
    squares: float
    """Sum of squared document slots, a pack."""
    num_documents: int | None
    packs_per_epoch: int | None
    best_fill: float | None
    """What `best_fit` would fill; None where it was not tried."""

    @property
    def fill(self) -> float:
        """Tokens of documents as a share of the slots."""
        return self.tokens / self.seq_length

    def flops(self, model: ModelConfig) -> TrainingFlops:
        """Of the mean pack, all slots computed."""
        return flops_of_sums(
            model,
            num_slots=self.seq_length,
            sum_lengths=self.document_slots,
            sum_squares=self.squares,
        )


def pack_work(recipe: TrainRecipe, assumed: AssumedData) -> PackWork:
    """From the recipe's dataset where it is on this machine, else as assumed.

    Raises DsmError where the dataset is damaged or does not fit the recipe.
    """
    prefix = recipe.data.train
    if not prefix.with_name(prefix.name + MANIFEST_SUFFIX).exists():
        return _assumed_work(recipe, assumed)
    dataset = TokenizedDataset(prefix)
    packs = training_packs(recipe, dataset)
    if packs.num_packs == 0:
        raise DsmError(f"{prefix}: holds no document that is short enough for a pack")
    totals = packs.totals(dataset.lengths)
    return PackWork(
        source=f"{prefix}: {dataset.num_documents:,} documents, packed as the recipe says",
        is_assumed=False,
        seq_length=packs.capacity,
        alignment=packs.alignment,
        tokens=float(totals.tokens.mean()),
        document_slots=float(totals.slots.mean()),
        squares=float(totals.squares.mean()),
        num_documents=dataset.num_documents,
        packs_per_epoch=packs.num_packs,
        best_fill=_best_fill(recipe, dataset),
    )


def _best_fill(recipe: TrainRecipe, dataset: TokenizedDataset) -> float | None:
    if recipe.data.strategy == "best_fit" and recipe.data.packs is None:
        return None
    data = recipe.data.model_copy(update={"strategy": "best_fit", "packs": None})
    packs = training_packs(recipe.model_copy(update={"data": data}), dataset)
    return packs.statistics(dataset.lengths).fill


def _assumed_work(recipe: TrainRecipe, assumed: AssumedData) -> PackWork:
    data = recipe.data
    tokens = assumed.fill * data.seq_length
    # Of lognormal lengths the mean square is exp(sigma^2) times the squared mean; none is longer
    # than the pack.
    square = min(assumed.mean_length * math.exp(_SIGMA**2), data.seq_length)
    packs = None
    if assumed.num_documents is not None:
        packs = math.ceil(assumed.num_documents * assumed.mean_length / tokens)
    count = f"{assumed.num_documents:,} documents" if assumed.num_documents else "documents"
    return PackWork(
        source=(
            f"{data.train}: not on this machine; assumed {count} of {assumed.mean_length:g} tokens "
            f"in the mean, packs {assumed.fill:.1%} full (--assume-documents, "
            f"--assume-mean-length, --assume-fill)"
        ),
        is_assumed=True,
        seq_length=data.seq_length,
        alignment=data.alignment,
        tokens=tokens,
        document_slots=tokens,
        squares=tokens * square,
        num_documents=assumed.num_documents,
        packs_per_epoch=packs,
        best_fill=None,
    )


def planned_model(recipe: TrainRecipe) -> tuple[ModelConfig, str | None]:
    """The shape of the recipe's model, and a remark where its weights could not be looked at.

    Raises DsmError where neither says it, or the two differ.
    """
    if recipe.initialize_from is None:
        assert recipe.model is not None  # the recipe's own check
        return recipe.model, None
    config = recipe.initialize_from / "config.json"
    if not config.exists():
        if recipe.model is None:
            raise DsmError(
                f"{config}: is not on this machine, and the recipe has no model: section; give "
                f"the shape there, or put the weights in their place"
            )
        return recipe.model, f"{recipe.initialize_from}: not on this machine; shape as in model:"
    weights = from_hf_config(read_json(config), str(config))
    if recipe.model is not None and (differences := recipe.model.differences(weights)):
        raise DsmError(
            f"{recipe.initialize_from}: has another shape than the recipe's model "
            f"({'; '.join(differences)}); leave model: out to take the weights' own"
        )
    return weights, None
