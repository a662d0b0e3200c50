"""The FLOP formula: the paper's model by hand, counted products, and shares of a peak."""

import numpy as np
import pytest

from dsm_engine.model.config import ModelConfig
from dsm_engine.model.flops import flops_of_sums, mfu, model_flops, peak_flops

DEEPSEEKMATH = ModelConfig(
    num_layers=30,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=32,
    ffn_hidden_size=11008,
    vocab_size=102400,
)
SMALL = ModelConfig(
    num_layers=3,
    hidden_size=48,
    num_attention_heads=6,
    num_query_groups=2,
    ffn_hidden_size=80,
    vocab_size=96,
)


def test_the_papers_model_takes_41_96_gflops_a_token_in_documents_of_4096() -> None:
    parts = flops_of_sums(DEEPSEEKMATH, num_slots=4096, sum_lengths=4096, sum_squares=4096**2)
    assert round(parts.linears / 4096 / 1e9, 2) == 36.43
    assert round(parts.head / 4096 / 1e9, 2) == 2.52
    assert round(parts.attention / 4096 / 1e9, 2) == 3.02
    assert round(model_flops(DEEPSEEKMATH, [4096], 4096) / 4096 / 1e9, 2) == 41.96


def test_and_39_3_in_documents_of_512() -> None:
    flops = model_flops(DEEPSEEKMATH, np.full(8, 512, np.int32), 4096)
    assert round(flops / 4096 / 1e9, 1) == 39.3


def test_the_products_of_a_forward_pass_are_a_third() -> None:
    """Every matrix product of an explicit forward pass, its operations added up."""
    lengths = [5, 11, 1, 7]
    num_slots = sum(lengths) + 4  # padding behind the documents

    def product(rows: int, inner: int, columns: int) -> int:
        return 2 * rows * inner * columns

    m = SMALL
    qkv = (m.num_attention_heads + 2 * m.num_query_groups) * m.head_dim
    layer = product(num_slots, m.hidden_size, qkv)
    layer += product(num_slots, m.num_attention_heads * m.head_dim, m.hidden_size)
    layer += product(num_slots, m.hidden_size, 2 * m.ffn_hidden_size)
    layer += product(num_slots, m.ffn_hidden_size, m.hidden_size)
    for length in lengths:
        for position in range(length):
            scores = product(1, m.head_dim, position + 1)
            layer += m.num_attention_heads * 2 * scores
    forward = m.num_layers * layer + product(num_slots, m.hidden_size, m.vocab_size)
    assert model_flops(m, lengths, num_slots) == 3 * forward


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lengths_come_as_arrays_and_squares_do_not_overflow(dtype: type) -> None:
    length = 100_000  # its square is above 2^31
    assert model_flops(SMALL, np.array([length], dtype), length) == model_flops(
        SMALL, [length], length
    )
    assert model_flops(SMALL, np.array([length], dtype), length) > 6.0 * length**2


def test_sums_over_packs_give_what_the_documents_give() -> None:
    lengths = np.random.default_rng(3).integers(1, 900, 5000)
    by_sums = flops_of_sums(
        SMALL,
        num_slots=5_000_000,
        sum_lengths=int(lengths.sum()),
        sum_squares=int((lengths**2).sum()),
    )
    assert by_sums.total == model_flops(SMALL, lengths, 5_000_000)


def test_mfu_is_the_share_of_what_all_gpus_could_do() -> None:
    assert mfu(flops=989e12 * 8, seconds=2.0, num_gpus=8, peak_flops=989e12) == 0.5


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("h200", "fp32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5e12),
        ("Intel Xeon", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_peaks_are_found_by_the_names_torch_gives(
    name: str, precision: str, peak: float | None
) -> None:
    assert peak_flops(name, precision) == peak  # type: ignore[arg-type]
