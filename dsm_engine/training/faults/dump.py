"""The packs of a step as files, for a look and for `dsm train RECIPE --replay STEP`.

RUN/faults/step_00000012.json         what went wrong, and the examples
RUN/faults/step_00000012.safetensors  tokens, labels, loss_weights, position_ids [packs, T],
                                      cu_seqlens [packs, D] (padded by repeating T), and of each
                                      pack its number, documents and longest document [packs, 3]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dsm_engine.data.packed_batch import PackedBatch, PackReader
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, make_folder, read_bytes, read_json, write_json

_ROWS = ("tokens", "labels", "loss_weights", "position_ids", "document_ids", "cu_seqlens")


@dataclass(frozen=True, kw_only=True)
class StepDump:
    """A dumped step."""

    facts: dict[str, Any]
    """The JSON file."""
    arrays: dict[str, NDArray[Any]]

    @property
    def packs(self) -> list[int]:
        """The packs of the step, in the order they are dealt to ranks."""
        return self.arrays["pack"][:, 0].tolist()


class DumpedPacks:
    """Stands in for a `PackReader`: the packs of the dump are read from it."""

    def __init__(self, dump: StepDump, reader: PackReader) -> None:
        self._dump = dump
        self._reader = reader
        self._row_of = {pack: row for row, pack in enumerate(dump.packs)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read(self, pack_idx: int, *, out: PackedBatch | None = None) -> PackedBatch:
        """The pack as it was dumped; `out` is not used."""
        row = self._row_of[pack_idx]
        batch = PackedBatch(**{name: self._dump.arrays[name][row] for name in _ROWS})
        _, batch.num_documents, batch.max_seqlen = self._dump.arrays["pack"][row].tolist()
        batch.num_supervised = int((batch.loss_weights > 0).sum())
        batch.packs, batch.pack_idx = self._reader.packs, pack_idx
        return batch


def write_dump(
    run: Path, step: int, reader: PackReader, packs: Sequence[int], facts: dict[str, Any]
) -> Path:
    """Writes the packs of a step and what is known of it; returns the JSON file.

    `step` counts from 1, as metrics do.
    """
    json, arrays = _paths(run, step)
    make_folder(json.parent)
    batches = [reader.read(pack) for pack in packs]
    stacked = {name: np.stack([getattr(batch, name) for batch in batches]) for name in _ROWS}
    stacked["pack"] = np.array(
        [[batch.pack_idx, batch.num_documents, batch.max_seqlen] for batch in batches], np.int64
    )
    with atomic_file(arrays) as file:
        file.write(save(stacked))
    write_json(json, facts)
    return json


def read_dump(run: Path, step: int) -> StepDump:
    """The dump of a step. Raises DsmError where there is none, or it is damaged."""
    json, arrays = _paths(run, step)
    if not json.exists():
        there = sorted(int(path.stem.removeprefix("step_")) for path in json.parent.glob("*.json"))
        raise DsmError(
            f"{json}: there is no such dump; this run has dumps of steps {there or '(none)'}"
        )
    try:
        loaded = load(read_bytes(arrays))
    except SafetensorError as error:
        raise DsmError(f"{arrays}: is damaged ({error})") from error
    missing = [name for name in (*_ROWS, "pack") if name not in loaded]
    if missing:
        raise DsmError(f"{arrays}: has no {missing[0]}; it is no dump of this engine")
    return StepDump(facts=read_json(json), arrays=loaded)


def _paths(run: Path, step: int) -> tuple[Path, Path]:
    stem = run / "faults" / f"step_{step:08d}"
    return stem.with_suffix(".json"), stem.with_suffix(".safetensors")
