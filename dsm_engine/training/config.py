"""The recipe of a training run."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from dsm_engine.data.pack_index import OverlongPolicy, PackStrategy
from dsm_engine.model.config import AttentionChoice, ModelConfig, Precision
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.recipes import Section
from dsm_engine.training.faults.config import FaultsConfig


class TrainDataConfig(Section):
    """What is trained on."""

    train: Path
    """Prefix of the tokenized dataset `dsm preprocess` wrote."""
    validation: Path | None = None
    """Prefix of a dataset whose loss is reported and never trained on."""
    tokenizer: Path | None = None
    """The tokenizer the datasets were made with (checked); copied beside the checkpoints so that
    an exported model carries it. Default: the path in the training set's manifest."""
    packs: Path | None = None
    """Pack index `dsm pack` wrote for `train`; default: built at start-up (milliseconds)."""
    strategy: PackStrategy = "random"
    """How packs are built where `packs` is not given; `random` is the paper's."""
    overlong: OverlongPolicy = "error"
    """What becomes of documents longer than a pack; `drop` and `truncate` count them in data.json.
    Also where `packs` is not given."""
    alignment: int = Field(default=1, gt=0)
    """Documents take the next multiple of it in slots; also where `packs` is not given."""
    seq_length: int = Field(default=4096, gt=0)
    """Tokens a pack holds."""


class OptimizationConfig(Section):
    """How weights move."""

    steps: int = Field(gt=0, le=10**9)
    """Optimizer steps in all (a resumed run continues towards the same number)."""
    global_batch_size: int = Field(gt=0, le=10**6)
    """Packs a step, over all ranks."""
    lr: float = Field(gt=0)
    """Learning rate; constant after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from lr / warmup_steps to lr."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled (AdamW), on matrices only."""
    clip_grad: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global L2 norm."""
    attention_backend: AttentionChoice = "auto"
    """What computes attention over packs. `auto` takes the first that this machine has, in the
    order of docs/attention.md; `dsm doctor` shows which."""
    precision: Precision = "fp32"
    """`bf16` keeps fp32 main weights and fp32 gradient sums."""


class LoggingConfig(Section):
    """What is written while training, and how often (steps)."""

    save_every: int = Field(default=100, gt=0)
    """A checkpoint is also written after the last step."""
    save_initial: bool = False
    """Keep the untrained weights as the checkpoint of step 0."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints kept; step 0 of `save_initial` is kept besides."""
    validate_every: int = Field(default=100, gt=0)
    tensorboard: bool = True


class TrainRecipe(Section):
    """Everything `dsm train` does, in one file."""

    run: Path
    """Folder of the run: recipe, environment, metrics, checkpoints."""
    seed: int = Field(default=1234, ge=0, lt=2**31)
    """Fixes fresh weights, the packs and their order."""
    data: TrainDataConfig
    model: ModelConfig | None = None
    """Shape of the model; default: that of `initialize_from`."""
    initialize_from: Path | None = None
    """Hugging Face folder with the weights to start from; default: fresh weights."""
    parallel: ParallelConfig = ParallelConfig()
    training: OptimizationConfig
    logging: LoggingConfig = LoggingConfig()
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.model is None and self.initialize_from is None:
            raise ValueError("give the model's shape (model:) or weights (initialize_from:)")
        return self
