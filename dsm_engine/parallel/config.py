"""The `parallel` section of a recipe, and the checks that need no process group."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from dsm_engine.recipes import Section

Recompute = Literal["none", "selective", "full"]


class ParallelConfig(Section):
    """How one model is laid out over ranks and memory; data parallelism (DP) takes what is left of
    the world."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA with NCCL where a GPU is present, the CPU with gloo elsewhere."""
    tensor_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each layer's matrices (TP)."""
    pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that hold consecutive layers (PP), 1F1B schedule."""
    virtual_pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Model chunks a pipeline rank holds (VP): above 1 the schedule is interleaved 1F1B, whose
    bubble is VP times smaller; needs PP > 1."""
    context_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share the tokens of every document of a pack (CP); documents take a multiple of
    2 x CP slots (data.alignment)."""
    sequence_parallel: bool = False
    """Split activations between TP regions along the sequence (SP); needs TP > 1."""
    use_distributed_optimizer: bool = True
    """Shard optimizer states over data-parallel and context-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass goes on; needs
    use_distributed_optimizer and overlap_grad_reduce."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass instead of kept: `selective` those inside
    the MLP (attention over packs keeps no scores), `full` all but each layer's input."""
    optimizer_cpu_offload: bool = False
    """Keep optimizer states in host memory and step them there. On a CPU they are there already."""
    timeout_s: int = Field(default=600, gt=0)
    """A collective that takes longer ends the job with an error."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks one copy of the model takes, each with its share of the tokens."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    @property
    def slots_divisor(self) -> int:
        """What the slots of a pack are a multiple of."""
        cp = self.context_parallel_size
        sp = self.tensor_model_parallel_size if self.sequence_parallel else 1
        return (2 * cp if cp > 1 else 1) * sp


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a layout has to fit; sizes as in the recipe."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    seq_length: int
    alignment: int
    """Documents take the next multiple of it in slots."""
    global_batch_size: int


def layout_mistakes(parallel: ParallelConfig, work: Workload, *, world_size: int) -> list[str]:
    """Every reason why this layout cannot run, each a sentence; empty where it can."""
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vp = parallel.virtual_pipeline_model_parallel_size
    mistakes = [
        f"{name} {value} is not divisible by {by_name} {by}"
        for name, value, by_name, by in (
            ("world size", world_size, "TP x PP x CP", parallel.model_parallel_size),
            ("model.num_layers", work.num_layers, "PP x VP" if vp > 1 else "PP", pp * vp),
            ("model.num_attention_heads", work.num_attention_heads, "TP", tp),
            ("model.num_query_groups", work.num_query_groups, "TP", tp),
            ("model.ffn_hidden_size", work.ffn_hidden_size, "TP", tp),
            ("model.vocab_size", work.vocab_size, "TP", tp),
        )
        if value % by
    ]
    mistakes += _sequence_mistakes(parallel, work)
    mistakes += _option_mistakes(parallel)
    dp = max(1, world_size // parallel.model_parallel_size)
    if work.global_batch_size % dp:
        mistakes.append(
            f"training.global_batch_size {work.global_batch_size} is not divisible by the "
            f"{dp} data-parallel ranks"
        )
    elif vp > 1 and (work.global_batch_size // dp) % pp:
        mistakes.append(
            f"an interleaved pipeline takes micro-batches in groups of PP {pp}: "
            f"training.global_batch_size {work.global_batch_size} over {dp} data-parallel ranks "
            f"is {work.global_batch_size // dp}, which is not divisible by it"
        )
    return mistakes


def _sequence_mistakes(parallel: ParallelConfig, work: Workload) -> list[str]:
    cp = parallel.context_parallel_size
    mistakes: list[str] = []
    if work.seq_length % parallel.slots_divisor:
        by = ["2 x CP"] if cp > 1 else []
        by += ["TP"] if parallel.sequence_parallel else []
        mistakes.append(
            f"data.seq_length {work.seq_length} is not divisible by {' x '.join(by)} "
            f"{parallel.slots_divisor}"
        )
    if cp > 1 and work.alignment % (2 * cp):
        mistakes.append(
            f"data.alignment {work.alignment} is not divisible by 2 x CP {2 * cp}: each document "
            f"is cut into that many equal chunks; set data.alignment={2 * cp}"
        )
    return mistakes


def _option_mistakes(parallel: ParallelConfig) -> list[str]:
    rules = (
        (
            parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1,
            "sequence_parallel needs tensor_model_parallel_size > 1",
        ),
        (
            parallel.virtual_pipeline_model_parallel_size > 1
            and parallel.pipeline_model_parallel_size == 1,
            "virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size > 1",
        ),
        (
            parallel.overlap_param_gather and not parallel.use_distributed_optimizer,
            "overlap_param_gather needs use_distributed_optimizer",
        ),
        (
            parallel.overlap_param_gather and not parallel.overlap_grad_reduce,
            "overlap_param_gather needs overlap_grad_reduce",
        ),
        (
            parallel.optimizer_cpu_offload and not parallel.use_distributed_optimizer,
            "optimizer_cpu_offload needs use_distributed_optimizer",
        ),
    )
    return [sentence for is_broken, sentence in rules if is_broken]
