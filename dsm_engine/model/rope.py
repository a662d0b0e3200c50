"""Frequencies of rotary embeddings for contexts longer than the model was first made for."""

import math

import torch
from torch import Tensor

from dsm_engine.model.config import RopeScaling


def scaled_inv_freq(scaling: RopeScaling, inv_freq: Tensor) -> Tensor:
    """The frequencies (radians a position) that replace inv_freq [head_dim / 2].

    `linear` divides all by the factor (Chen et al. 2023, position interpolation). `llama3` divides
    those whose wavelength is above original_max_position_embeddings / low_freq_factor, leaves
    those whose wavelength is below original_max_position_embeddings / high_freq_factor, and mixes
    linearly in (original_max_position_embeddings / wavelength) between (Llama 3.1's published
    code).
    """
    if scaling.type == "linear":
        return inv_freq / scaling.factor
    assert scaling.original_max_position_embeddings is not None  # the section's own check
    turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(inv_freq / scaling.factor, inv_freq, kept)
