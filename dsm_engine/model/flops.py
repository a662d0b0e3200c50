"""Floating-point operations of training by one formula, and the share of a device's peak (MFU).

For one step, forward and backward, of a model of shape (L layers, h hidden, f FFN, a query heads
and g groups of width d, vocabulary V) over n token slots that hold documents of lengths l_i:

    linears    6 n L (2 h d (a + g) + 3 h f)
    head       6 n h V
    attention  12 L a d sum_i l_i (l_i + 1) / 2

A multiplication and an addition count as two operations; the backward pass of a matrix product is
two products of the same size, hence 6 operations a weight and slot (Kaplan et al., 2020, section
2.1; Narayanan et al., 2021, section 5). Attention counts the pairs that a causal mask within each
document leaves, the diagonal included, in two products: scores and their sum over values. Not
counted: recomputed activations (so the share is MFU, not HFU: Chowdhery et al., 2022, appendix B),
and what is no matrix product: embedding look-up, norms, RoPE, softmax, SwiGLU, loss, optimizer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dsm_engine.model.config import ModelConfig, Precision


@dataclass(frozen=True, kw_only=True)
class TrainingFlops:
    """Operations of a forward and backward pass, by part."""

    linears: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.linears + self.head + self.attention


def model_flops(model: ModelConfig, lengths: ArrayLike, num_slots: int) -> float:
    """Operations of training on `num_slots` token slots that hold documents of these lengths.

    `lengths` is a sequence or an integer array of any shape: the slots each document takes, over
    all packs of the step. Padding behind the documents counts in `num_slots` where it is given
    there (it is computed all the same), and in attention only where `lengths` has it.
    """
    array = np.asarray(lengths, dtype=np.int64)
    squares = float(np.square(array.astype(np.float64)).sum())
    tokens = int(array.sum())
    return flops_of_sums(model, num_slots=num_slots, sum_lengths=tokens, sum_squares=squares).total


def flops_of_sums(
    model: ModelConfig, *, num_slots: float, sum_lengths: float, sum_squares: float
) -> TrainingFlops:
    """The same from sums over the documents: of their lengths and of their squared lengths.

    Those are what `PackTotals` has for each pack, as `slots` and `squares`.
    """
    pairs = (sum_squares + sum_lengths) / 2
    width = model.num_attention_heads * model.head_dim
    return TrainingFlops(
        linears=6.0 * num_slots * model.num_layers * layer_matrix_parameters(model),
        head=6.0 * num_slots * model.hidden_size * model.vocab_size,
        attention=12.0 * model.num_layers * width * pairs,
    )


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the matrices of one layer: attention's four and the MLP's three."""
    heads = model.num_attention_heads + model.num_query_groups
    attention = 2 * model.hidden_size * model.head_dim * heads
    return attention + 3 * model.hidden_size * model.ffn_hidden_size


def mfu(flops: float, seconds: float, num_gpus: int, peak_flops: float) -> float:
    """Model FLOPs utilization, 0 to 1: `flops` by `model_flops` over what `num_gpus` devices of
    `peak_flops` (operations a second) could have done in `seconds`."""
    assert seconds > 0 and num_gpus > 0 and peak_flops > 0, (seconds, num_gpus, peak_flops)
    return flops / (seconds * num_gpus * peak_flops)


@dataclass(frozen=True, kw_only=True)
class _Peak:
    bf16: float
    fp32: float


# Dense operations a second, bf16 with fp32 sums on tensor cores and fp32 outside them (torch's
# default keeps fp32 products off TF32), from NVIDIA's data sheets; where a sheet has sparse figures
# only, half of them. Words that a device's name must all have; the first line that fits holds.
_PEAKS: tuple[tuple[tuple[str, ...], _Peak], ...] = (
    (("B200",), _Peak(bf16=2250e12, fp32=75e12)),
    (("H200", "NVL"), _Peak(bf16=835.5e12, fp32=60e12)),
    (("H200",), _Peak(bf16=989e12, fp32=67e12)),  # GH200 too
    (("H100", "PCIE"), _Peak(bf16=756e12, fp32=51e12)),
    (("H100", "NVL"), _Peak(bf16=835.5e12, fp32=60e12)),
    (("H100",), _Peak(bf16=989e12, fp32=67e12)),
    (("H800", "PCIE"), _Peak(bf16=756e12, fp32=51e12)),
    (("H800",), _Peak(bf16=989e12, fp32=67e12)),
    (("A100",), _Peak(bf16=312e12, fp32=19.5e12)),
    (("A800",), _Peak(bf16=312e12, fp32=19.5e12)),
    (("L40S",), _Peak(bf16=362e12, fp32=91.6e12)),
)


def peak_flops(device_name: str, precision: Precision = "bf16") -> float | None:
    """Dense operations a second of a device, None where it is not in the table.

    `device_name` is what `torch.cuda.get_device_name()` says ("NVIDIA H100 80GB HBM3"), or a part
    of it ("h100"). The peak of a card without a word for its form (PCIe, NVL) is SXM's.
    """
    name = device_name.upper()
    for words, peak in _PEAKS:
        if all(word in name for word in words):
            return peak.bf16 if precision == "bf16" else peak.fp32
    return None
