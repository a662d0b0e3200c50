"""What the engine has not yet: rows that need it are left out until it does."""

import inspect

from dsm_engine.data.indexed_dataset import IndexedDataset
from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import PackReader


def has_arena() -> bool:
    return _say(
        "build_pack_index(arena=)", "arena" in inspect.signature(build_pack_index).parameters
    )


def has_batches() -> bool:
    return _say("IndexedDataset.documents", hasattr(IndexedDataset, "documents"))


def has_read_batch() -> bool:
    return _say("PackReader.read_batch", hasattr(PackReader, "read_batch"))


def _say(what: str, there: bool) -> bool:
    if not there:
        print(f"{what} is not there yet: its rows are left out")
    return there
