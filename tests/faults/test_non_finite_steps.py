"""Steps with a loss or a gradient that is not finite, and loss spikes: one process."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.faults.exits import NON_FINITE, NonFiniteStep
from dsm_engine.training.faults.spikes import LEAST_SIGMA, MAD_TO_SIGMA, SpikeDetector
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics
from dsm_engine.training.replay import replay
from dsm_engine.training.stream import PackStream
from tests.faults.poisoned_weights import documents_with_rare_tokens, poison, rare_token

STEPS, BAD_STEP = 5, 3


class Poisoned:
    """Weights under which exactly one document of step BAD_STEP is not finite."""

    def __init__(self, folder: Path, document: int) -> None:
        self.folder = folder
        self.document = document


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """A Hugging Face folder of the tiny model."""
    folder = tmp_path_factory.mktemp("weights")
    recipe = make_recipe(sample_data, folder / "run", training__steps=1)
    return convert(_train(recipe), folder / "hf") or folder / "hf"


def _train(recipe: dict[str, Any], **changes: Any) -> Path:
    return train(TrainRecipe.model_validate(recipe), **changes)
