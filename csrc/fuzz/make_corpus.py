"""Seeds for the fuzz targets, made by the project's writers where it has one: FOLDER/TARGET/NAME.

python csrc/fuzz/make_corpus.py build/fuzz/seeds

Small ones of each kind are committed in csrc/fuzz/corpus. A new target is one more function in
TARGETS, of the name that CMakeLists.txt and the Makefile know.
"""

import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dsm_engine.data.indexed_dataset import write_index
from dsm_engine.data.pack_file import save_pack_index
from dsm_engine.data.pack_index import STRATEGIES, build_pack_index
from dsm_engine.data.sidecars import AttributeTableWriter, SpanTableWriter
from dsm_engine.data.tokenized_dataset import TokenizedDatasetWriter

Seeds = Iterator[tuple[str, bytes]]

_LENGTHS = {"none": [], "one": [5], "few": [3, 1, 5, 2], "many": list(range(1, 60))}
_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16")


def index_seeds(folder: Path) -> Seeds:
    """An .idx of each dtype and size, one with modes, one of documents of several sequences."""
    for dtype in _DTYPES:
        yield f"few_{dtype}", _index([3, 1, 5, 2], dtype)
    for name, lengths in _LENGTHS.items():
        yield f"{name}_uint16", _index(lengths, "uint16")
    few = _index([3, 1, 5, 2], "int32")
    yield "modes", few + bytes([0, 1, 0, 1])
    table = 34 + 12 * 4
    ends = np.array([0, 0, 3, 4], np.int64).tobytes()  # an empty document, one of 3, one of 1
    yield "several", few[:26] + (4).to_bytes(8, "little") + few[34:table] + ends


def span_seeds(folder: Path) -> Seeds:
    """A .spans of each size, documents of no, one and several spans."""
    for name, lengths in _LENGTHS.items():
        writer = SpanTableWriter(folder)
        for i, length in enumerate(lengths):
            spans = [(0, length)] if i % 3 else [(j, j + 1) for j in range(0, length, 2)]
            writer.add(spans if i % 4 else [], length)
        yield name, _written(writer)


def attribute_seeds(folder: Path) -> Seeds:
    """An .attributes of each size, with empty and non-ASCII text."""
    for name, lengths in _LENGTHS.items():
        writer = AttributeTableWriter(folder)
        for i in range(len(lengths)):
            writer.add(f"第{i}" * (i % 3), (f"s{i % 5}", "zh" if i % 2 else "en", "", "代数"))
        yield name, _written(writer)


def manifest_seeds(folder: Path) -> Seeds:
    """The manifests of an empty and of a small dataset."""
    attributes = {"source": "s", "language": "en", "format": "cot", "topic": "t"}
    for name in ("none", "few"):
        with TokenizedDatasetWriter(folder / name, vocab_size=1000) as writer:
            for i in range(4 * (name == "few")):
                writer.add([1, 2, i], [(1, 3)], id=str(i), **attributes)
            writer.finish(ledger={"kept": writer.num_documents})
        yield name, (folder / f"{name}.manifest.json").read_bytes()


def pack_index_seeds(folder: Path) -> Seeds:
    """A pack index of each strategy and size, ids of 4 and of 8 bytes."""
    for strategy in STRATEGIES:
        for name, lengths in _LENGTHS.items():
            packs = build_pack_index(
                lengths, capacity=64, strategy=strategy, seed=1, alignment=2, overlong="truncate"
            )
            save_pack_index(packs, folder / "packs")
            yield f"{strategy}_{name}", (folder / "packs").read_bytes()
    wide = dataclasses.replace(packs, documents=packs.documents.astype(np.int64))
    save_pack_index(wide, folder / "packs")
    yield "wide", (folder / "packs").read_bytes()


def operator_seeds(folder: Path) -> Seeds:
    """A pack of each operator, sound and not, as fuzz_operators.cpp reads one; the rest random."""
    random = np.random.default_rng(0)
    for op in range(5):
        for is_sound in (False, True):
            for name, num_tokens in (("short", 5), ("long", 38)):
                head = np.array([op, is_sound, num_tokens, 6], np.uint16).tobytes()
                yield f"{op}_{is_sound}_{name}", head + random.bytes(16 * num_tokens)


_PACKS = {
    "one": [0, 100],
    "few": [0, 3, 40, 41, 100, 100],
    "empty": [0, 0, 7, 7, 64],
    "falling": [0, 50, 20, 64],
    "none": [0, 0],
}


def block_mask_seeds(folder: Path) -> Seeds:
    """Packs of each kind under both masks: num_tokens, block sizes and window less 1, flags."""
    options = {"causal": (15, 15, 999, 3), "full": (6, 31, 999, 2), "window": (15, 7, 19, 3)}
    return _pack_seeds(options)


def context_parallel_seeds(folder: Path) -> Seeds:
    """Packs of each kind on one rank and several, also with too few slots."""
    return _pack_seeds({"one_rank": (0, 60), "three": (2, 30), "few_slots": (1, 3)})


def _pack_seeds(options: dict[str, tuple[int, ...]]) -> Seeds:
    """For the operators over cu_seqlens: 16-bit num_tokens and options, then 32-bit entries."""
    for pack, cu_seqlens in _PACKS.items():
        for name, values in options.items():
            header = np.array([cu_seqlens[-1], *values], np.uint16)
            yield f"{pack}_{name}", header.tobytes() + np.array(cu_seqlens, np.int32).tobytes()


TARGETS: dict[str, Callable[[Path], Seeds]] = {
    "index": index_seeds,
    "spans": span_seeds,
    "attributes": attribute_seeds,
    "manifest": manifest_seeds,
    "pack_index": pack_index_seeds,
    "operators": operator_seeds,
    "block_mask": block_mask_seeds,
    "context_parallel": context_parallel_seeds,
}


def main(output: Path) -> None:
    """Writes the seeds of all targets below `output`."""
    for target, seeds in TARGETS.items():
        (output / target).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in seeds(Path(folder)):
                (output / target / name).write_bytes(content)


def _index(lengths: list[int], dtype: str) -> bytes:
    file = io.BytesIO()
    write_index(file, lengths, np.dtype(dtype))
    return file.getvalue()


def _written(writer: SpanTableWriter | AttributeTableWriter) -> bytes:
    file = io.BytesIO()
    writer.write_to(file)
    writer.close()
    return file.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
