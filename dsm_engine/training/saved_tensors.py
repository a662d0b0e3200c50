"""A checkpoint's weights, each read when it is asked for, without building a model."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dsm_engine.errors import DsmError
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.checkpoint import CheckpointDescription, verified_records


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A box of a tensor and where its bytes lie."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    num_bytes: int


def open_saved_tensors(
    folder: Path, description: CheckpointDescription, context: ParallelContext
) -> "SavedTensors":
    """The weights of a checkpoint whose files are what was written.

    All ranks together. Raises DsmError where a file is missing, damaged or not what a checkpoint
    holds.
    """
    metadata = verified_records(folder, description, context).metadata
    chunks: dict[str, list[_Chunk]] = {}
    for index, stored in metadata.storage_data.items():
        saved = metadata.state_dict_metadata[index.fqn]
        if not isinstance(saved, TensorStorageMetadata):
            continue
        sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in saved.chunks}
        offsets = tuple(index.offset)
        chunks.setdefault(index.fqn, []).append(
            _Chunk(
                offsets=offsets,
                sizes=sizes[offsets],
                file=stored.relative_path,
                begin=stored.offset,
                num_bytes=stored.length,
            )
        )
    return SavedTensors(folder, chunks)


class SavedTensors:
    """The tensors of a checkpoint, whatever layout wrote it: each in one chunk or several."""

    def __init__(self, folder: Path, chunks: Mapping[str, list[_Chunk]]) -> None:
        self._folder = folder
        self._chunks = chunks

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A parameter by its name in the whole model, in the dtype it was saved in.

        Raises DsmError where the checkpoint has no such parameter of this shape.
        """
        whole: Tensor | None = None
        num_filled = 0
        for chunk in self._chunks.get(name, ()):
            part = self._read_chunk(chunk)
            if tuple(part.shape) == shape:
                return part
            if whole is None:
                whole = torch.empty(shape, dtype=part.dtype)
            box = tuple(
                slice(at, at + size) for at, size in zip(chunk.offsets, part.shape, strict=True)
            )
            whole[box].copy_(part)
            num_filled += part.numel()
        if whole is None or num_filled != whole.numel():
            raise DsmError(
                f"{self._folder}: holds no whole {name} of shape {shape}; was it saved from this "
                f"model?"
            )
        return whole

    def _read_chunk(self, chunk: _Chunk) -> Tensor:
        path = self._folder / chunk.file
        with path.open("rb") as file:
            file.seek(chunk.begin)
            content = BytesIO(file.read(chunk.num_bytes))
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DsmError(f"{path}: cannot be loaded: {reason}") from error
