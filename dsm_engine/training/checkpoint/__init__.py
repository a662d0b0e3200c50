"""Checkpoints: torch's distributed format as Megatron writes it, and a description to read.

RUN/checkpoints/step_00000100/  Megatron's files and dsm.json (step, model shape, identity of the
                                stream of examples, checksums of all other files)
RUN/checkpoints/latest          the name of the newest whole checkpoint

Weights and moments are stored as tensors of the whole model (`whole_model`), so that any layout
and either kind of optimizer reads what any other has written. Files are written by a thread while
training goes on (`writing`), and nothing in them can run code when they are read (`reading`).
"""

from dsm_engine.training.checkpoint.description import (
    CheckpointDescription,
    checkpoint_folder,
    describe_checkpoint,
    latest_checkpoint,
)
from dsm_engine.training.checkpoint.moments import optimizer_kind
from dsm_engine.training.checkpoint.reading import load_checkpoint, verified_records
from dsm_engine.training.checkpoint.under_way import SaveOutcome
from dsm_engine.training.checkpoint.writing import CheckpointWriter, save_checkpoint

__all__ = [
    "CheckpointDescription",
    "CheckpointWriter",
    "SaveOutcome",
    "checkpoint_folder",
    "describe_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "optimizer_kind",
    "save_checkpoint",
    "verified_records",
]
