"""The recipe of a training run."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dsm_engine.data.pack_index import OverlongPolicy, PackStrategy
from dsm_engine.model.config import AttentionChoice, ModelConfig, Precision
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.recipes import Section
from dsm_engine.training.faults.config import FaultsConfig

Schedule = Literal["constant", "linear", "cosine", "wsd"]
WsdDecay = Literal["sqrt", "linear"]
LossWeighting = Literal["token", "example", "document"]


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
    """Learning rate: its highest, after the warm-up."""
    schedule: Schedule = "constant"
    """What follows the warm-up. `linear` and `cosine` fall to min_lr over decay_steps; `wsd` stays
    at lr and falls over the last decay_steps. The formulas are in training/schedule.py."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from lr / warmup_steps to lr."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Steps the rate falls over. Default: `linear` and `cosine` all steps behind the warm-up, `wsd`
    a tenth of the steps."""
    min_lr: float = Field(default=0.0, ge=0)
    """The rate behind the decay."""
    wsd_decay: WsdDecay = "sqrt"
    """Shape of the decay of `wsd`: 1 - sqrt(share of the decay behind), or `linear`."""
    loss_weighting: LossWeighting = "token"
    """What counts alike in the loss: each supervised `token` of a step; each `example` with
    supervised tokens, by the mean over those in the step; or each `document` of a pack, where an
    example that was cut is as many as it has pieces."""
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
    deterministic: bool = False
    """torch's deterministic algorithms: two runs on the same layout are then bitwise equal on a
    GPU too, at some cost. On a CPU they are in any case."""
    precision: Precision = "fp32"
    """`bf16` keeps fp32 main weights and fp32 gradient sums."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        constant = self.schedule == "constant"
        decay_steps = self.decay_steps or 0
        rules = (
            (constant and decay_steps > 0, "decay_steps: schedule constant has no decay"),
            (constant and self.min_lr > 0, "min_lr: schedule constant has no decay"),
            (
                self.wsd_decay != "sqrt" and self.schedule != "wsd",
                f"wsd_decay: schedule {self.schedule} is not wsd",
            ),
            (self.min_lr > self.lr, f"min_lr {self.min_lr:g} is above lr {self.lr:g}"),
            (
                not constant and self.warmup_steps + max(decay_steps, 1) > self.steps,
                f"warmup_steps {self.warmup_steps} and a decay of {decay_steps or 'at least 1'} "
                f"do not fit into {self.steps} steps",
            ),
        )
        mistakes = [sentence for is_broken, sentence in rules if is_broken]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


class WandbConfig(Section):
    """Weights & Biases, which is a package to install beside this one."""

    project: str
    name: str = ""
    """Of the run; default: the name of its folder."""
    mode: Literal["online", "offline", "disabled"] = "online"


class LoggingConfig(Section):
    """What is written while training, and how often (steps)."""

    save_every: int = Field(default=100, gt=0)
    """A checkpoint is also written after the last step."""
    save_initial: bool = False
    """Keep the untrained weights as the checkpoint of step 0."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints kept; step 0 of `save_initial` is kept besides."""
    save_async: bool = True
    """Train on while checkpoints are written: their weights are copied into host memory first."""
    validate_every: int = Field(default=100, gt=0)
    tensorboard: bool = True
    wandb: WandbConfig | None = None
    slices: bool = True
    """Losses by source, language, format and topic of the documents, and by their combinations."""
    max_slices: int = Field(default=100, gt=0)
    """An attribute that has more values is left out of them, and so are more combinations."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Operations a second of one device, for MFU; default: what the table of model/flops.py says
    of it, if anything."""


class EvaluationConfig(Section):
    """The benchmarks that the model being trained answers in between, on rank 0."""

    recipe: Path
    """Of `dsm evaluate`; its `model` and `output` are replaced."""
    every: int = Field(gt=0)
    """Steps; and after the last."""
    max_problems: int | None = Field(default=None, gt=0)
    """Only so many of each benchmark."""
    keep_weights: bool = False
    """Keep the Hugging Face folder that was evaluated, RUN/evaluation/step_N/model."""
    timeout_s: int = Field(default=7200, gt=0)
    """The other ranks wait no longer, and end the job."""


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
    evaluation: EvaluationConfig | None = None
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.model is None and self.initialize_from is None:
            raise ValueError("give the model's shape (model:) or weights (initialize_from:)")
        return self
