"""The safetensors files of a Hugging Face folder, read and written a tensor at a time.

Peak memory is that of one tensor: a file is mapped only while a tensor of it is read, and written
in the order of its header, which is known before. The format: 8 bytes with the length of the
header, little-endian; the header, JSON; the tensors, row-major, without gaps
(https://huggingface.co/docs/safetensors/index#format).
"""

import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, read_json, write_json

DEFAULT_SHARD_BYTES = 5_000_000_000
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_READABLE = ("F32", "BF16", "F16")
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_SUFFIX = ".safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsFolder:
    """The tensors of model.safetensors or of the shards its index names.

    Raises DsmError where the folder holds neither, pickled weights included.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index, single = folder / _INDEX, folder / _SINGLE
        if index.exists():
            weight_map = _weight_map(index)
            self._file_of = {name: folder / file for name, file in weight_map.items()}
        elif single.exists():
            with _opened(single) as file:
                self._file_of = dict.fromkeys(file.keys(), single)
        else:
            raise DsmError(f"{folder}: holds no {_SINGLE} (nor its index.json){_pickles(folder)}")

    def refuse_other_names(self, expected: Iterable[str], *, ignored: Iterable[str]) -> None:
        """Raises DsmError unless the folder holds `expected` and, at most, `ignored` besides."""
        expected = list(expected)
        missing = [name for name in expected if name not in self._file_of]
        if missing:
            raise DsmError(
                f"{self._folder}: tensor {missing[0]} is missing ({len(missing)} in all)"
            )
        left = sorted(self._file_of.keys() - set(expected) - set(ignored))
        if left:
            raise DsmError(f"{self._folder}: {len(left)} tensors have no place, first {left[0]}")

    def take(
        self, name: str, shape: tuple[int, ...], dim: int | None, part: int, parts: int
    ) -> Tensor:
        """That part of a tensor of `shape`, cut into equal parts along `dim`; all where it is None.

        Nothing else of the file is read. Raises DsmError where the tensor has another shape, or is
        no float of 16 or 32 bits.
        """
        path = self._file_of[name]
        with _opened(path) as file:
            tensor = file.get_slice(name)
            found, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            if found != shape:
                raise DsmError(f"{path}: {name} has shape {found}, config.json says {shape}")
            if dtype not in _READABLE:
                raise DsmError(
                    f"{path}: {name} is of type {dtype}; weights are read from "
                    f"{', '.join(_READABLE)}: convert the folder first"
                )
            if dim is None or parts == 1:
                return tensor[:]
            length = shape[dim] // parts
            here = slice(part * length, (part + 1) * length)
            return tensor[here] if dim == 0 else tensor[:, here]


class ShardedWriter:
    """Writes tensors, whose names and shapes are known before, to as few files as the largest
    size allows; with an index where they are several."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        *,
        shard_bytes: int,
    ) -> None:
        """A tensor larger than `shard_bytes` gets a file of its own."""
        self._folder, self._dtype, self._shapes = folder, dtype, dict(shapes)
        self._files = _plan(self._shapes, dtype, shard_bytes)
        self._pending = self._tensors()
        self._expected = next(self._pending)

    def add(self, name: str, tensor: Tensor) -> None:
        """Writes the next tensor, in the dtype of the files. Raises DsmError where it cannot."""
        expected, file = self._expected
        assert name == expected and tuple(tensor.shape) == self._shapes[name], (name, expected)
        values = tensor.detach().to(device="cpu", dtype=self._dtype).contiguous()
        try:
            file.write(values.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise DsmError(f"{self._folder}: cannot be written: {error.strerror}") from error
        self._expected = next(self._pending, ("", file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._pending.close()  # the file that is being written is dropped
            return
        assert not self._expected[0], f"{self._expected[0]} is still to come"
        if len(self._files) > 1:
            sizes = (_num_bytes(shape, self._dtype) for shape in self._shapes.values())
            weight_map = {name: file for file, names in self._files.items() for name in names}
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
            write_json(self._folder / _INDEX, index)

    def _tensors(self) -> Generator[tuple[str, IO[bytes]], None, None]:
        """Each tensor's name and the file it is to be written to, opened and closed in turn."""
        for file_name, names in self._files.items():
            with atomic_file(self._folder / file_name) as file:
                shapes = {name: self._shapes[name] for name in names}
                file.write(_header(shapes, self._dtype))
                for name in names:
                    yield name, file


def _plan(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int
) -> dict[str, list[str]]:
    """File names, and the tensors of each in their order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        num_bytes = _num_bytes(shape, dtype)
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, start=1)
    }


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _num_bytes(shape, dtype)
        entry = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = entry
    content = orjson.dumps(header)
    content += b" " * (-len(content) % 8)  # the data begins at a multiple of 8
    return struct.pack("<Q", len(content)) + content


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, mapped while the block runs and while a tensor of it lives."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DsmError(f"{path}: cannot be read: {error}") from error


def _weight_map(index: Path) -> dict[str, str]:
    values = read_json(index)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DsmError(f"{index}: has no weight_map; delete it if {_SINGLE} is whole")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != Path(file).name or not file.endswith(_SUFFIX):
            raise DsmError(f"{index}: {name} is in {file!r}, not a .safetensors file beside it")
    return weight_map


def _pickles(folder: Path) -> str:
    found = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not found:
        return ""
    return (
        f"; {found[0]} is a pickle, which can run code when it is read: weights are read from "
        f"safetensors only (transformers' save_pretrained writes them)"
    )
