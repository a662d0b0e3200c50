"""The `parallel` section of a recipe, and the checks that need no process group."""

from typing import Literal

from pydantic import Field

from dsm_engine.recipes import Section


class ParallelConfig(Section):
    """How one model is laid out over ranks; data parallelism takes what is left of the world."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA with NCCL where a GPU is present, the CPU with gloo elsewhere."""
    tensor_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each layer's matrices (TP)."""
    pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Ranks that hold consecutive layers (PP, 1F1B schedule)."""
    sequence_parallel: bool = False
    """Split activations between TP regions along the sequence (SP); needs TP > 1."""
    use_distributed_optimizer: bool = True
    """Shard optimizer states over data-parallel ranks."""
    timeout_s: int = Field(default=600, gt=0)
    """A collective that takes longer ends the job with an error."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks one copy of the model takes."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size


def layout_mistakes(
    parallel: ParallelConfig,
    *,
    world_size: int,
    num_layers: int,
    num_attention_heads: int,
    num_query_groups: int,
    ffn_hidden_size: int,
    vocab_size: int,
    seq_length: int,
    global_batch_size: int,
) -> list[str]:
    """Every reason why this layout cannot run, each a sentence; empty where it can."""
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    mistakes = [
        f"{name} {value} is not divisible by {by_name} {by}"
        for name, value, by_name, by in (
            ("world size", world_size, "TP x PP", tp * pp),
            ("model.num_layers", num_layers, "PP", pp),
            ("model.num_attention_heads", num_attention_heads, "TP", tp),
            ("model.num_query_groups", num_query_groups, "TP", tp),
            ("model.ffn_hidden_size", ffn_hidden_size, "TP", tp),
            ("model.vocab_size", vocab_size, "TP", tp),
        )
        if value % by
    ]
    if parallel.sequence_parallel and tp == 1:
        mistakes.append("sequence_parallel needs tensor_model_parallel_size > 1")
    if parallel.sequence_parallel and seq_length % tp:
        mistakes.append(f"data.seq_length {seq_length} is not divisible by TP {tp} under SP")
    dp = max(1, world_size // (tp * pp))
    if global_batch_size % dp:
        mistakes.append(
            f"training.global_batch_size {global_batch_size} is not divisible by the "
            f"{dp} data-parallel ranks"
        )
    return mistakes
