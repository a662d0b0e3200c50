"""Bytes of activations that one micro-batch (a pack) leaves on a rank until its backward pass.

After Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models",
section 4, adapted to this engine's layer: RMSNorm, SwiGLU, grouped queries, attention that keeps no
scores, no dropout, no biases. Each line below is a tensor that autograd keeps.
"""

from dataclasses import dataclass

from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.parallel.config import ParallelConfig, Recompute

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Bytes that one layer keeps of one micro-batch."""

    attention: int
    mlp: int
    norms: int
    """The residual stream as both norms take it, and their outputs' scales."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.attention + self.mlp + self.norms


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The share of one micro-batch that a rank works on."""

    tokens: int
    """Slots of the pack over CP."""
    rows: int
    """Of them, those of the residual stream that the rank holds: fewer under SP."""
    pack_tokens: int
    """Slots of the whole pack."""
    element: int
    """Bytes of a number of the activations."""


def micro_batch(parallel: ParallelConfig, precision: Precision, seq_length: int) -> MicroBatch:
    """The share of a pack of `seq_length` slots."""
    tokens = seq_length // parallel.context_parallel_size
    tp = parallel.tensor_model_parallel_size
    return MicroBatch(
        tokens=tokens,
        rows=tokens // tp if parallel.sequence_parallel else tokens,
        pack_tokens=seq_length,
        element=2 if precision == "bf16" else _FP32,
    )


def layer_activations(
    model: ModelConfig,
    parallel: ParallelConfig,
    batch: MicroBatch,
    *,
    recompute: Recompute,
    on_cpu: bool = False,
) -> LayerActivations:
    """What one layer keeps under a recompute mode.

    `on_cpu` counts as the engine runs on a CPU, where neither RMSNorm nor SwiGLU is one kernel and
    attention goes document by document: for comparison with what is measured there.
    """
    stream = batch.rows * model.hidden_size * batch.element
    if recompute == "full":
        return LayerActivations(attention=0, mlp=0, norms=stream)
    norm = stream + _FP32 * batch.rows
    attention = stream + _core_attention(model, parallel, batch, on_cpu=on_cpu)  # input of QKV
    mlp = stream  # input of the gate and up projections
    if recompute == "none":
        mlp += mlp_interior(model, parallel, batch, on_cpu=on_cpu)
    if on_cpu:  # the rows and the normalised rows, both in fp32
        norm = 2 * _FP32 * batch.rows * model.hidden_size + _FP32 * batch.rows
    return LayerActivations(attention=attention, mlp=mlp, norms=2 * norm)


def mlp_interior(
    model: ModelConfig, parallel: ParallelConfig, batch: MicroBatch, *, on_cpu: bool = False
) -> int:
    """Between the MLP's two linears: gate and up (2 f), and their product (f).

    On a CPU also SwiGLU's two factors."""
    width = model.ffn_hidden_size // parallel.tensor_model_parallel_size
    return batch.tokens * (5 if on_cpu else 3) * width * batch.element


def _core_attention(
    model: ModelConfig, parallel: ParallelConfig, batch: MicroBatch, *, on_cpu: bool
) -> int:
    """Between the QKV and the output projection."""
    tp = parallel.tensor_model_parallel_size
    heads, groups = model.num_attention_heads // tp, model.num_query_groups // tp
    rotations = 4 * batch.tokens  # sines and cosines, of queries and of keys, as heads are wide
    queries_after_rope = heads * batch.tokens
    if parallel.context_parallel_size == 1:
        # The values are a view of the projection's output, all of which stays.
        keys_and_values = (heads + 2 * groups) * batch.tokens + groups * batch.tokens
    else:
        keys_and_values = 2 * groups * batch.pack_tokens  # gathered from all CP ranks
    outputs = (2 if on_cpu else 1) * heads * batch.tokens
    elements = rotations + queries_after_rope + keys_and_values + outputs
    softmax_sums = _FP32 * heads * batch.tokens
    return elements * model.head_dim * batch.element + softmax_sums


@dataclass(frozen=True, kw_only=True)
class HeadActivations:
    """Bytes of the last stage behind its layers, of one micro-batch."""

    kept: int
    """The final norm's input and the output layer's."""
    logits: int
    """At their peak: as the output layer gives them, and as the loss takes them (fp32)."""


def head_activations(
    model: ModelConfig, parallel: ParallelConfig, batch: MicroBatch
) -> HeadActivations:
    """Megatron's vocabulary-parallel cross-entropy works in place on an fp32 copy of the logits;
    in the backward pass the gradient in the activations' type stands beside it."""
    stream = batch.rows * model.hidden_size * batch.element
    vocabulary = model.vocab_size // parallel.tensor_model_parallel_size
    copies = _FP32 if batch.element == _FP32 else _FP32 + batch.element
    return HeadActivations(
        kept=2 * stream + _FP32 * batch.rows, logits=batch.tokens * vocabulary * copies
    )


def micro_batches_in_flight(parallel: ParallelConfig, *, stage: int, num_micro_batches: int) -> int:
    """Forward passes of one chunk whose backward pass is still to come, at most: 1F1B (Narayanan et
    al., 2021, section 2.2), with VP > 1 its interleaved form; as Megatron's schedules warm up."""
    pp = parallel.pipeline_model_parallel_size
    vp = parallel.virtual_pipeline_model_parallel_size
    if vp == 1:
        return min(num_micro_batches, pp - stage)
    return min(num_micro_batches * vp, 2 * (pp - stage - 1) + (vp - 1) * pp + 1)
