"""Packing, opening and gathering beside Megatron-Core and NumPy, in one run, on this machine.

    python benchmarks/bench_pack.py --output benchmarks/results/bench-data.json

Values are seconds, the median of the repetitions; ratio = baseline / value. The lengths are
lognormal (mean 350, sigma 0.7, 16 to 4,096 tokens), the capacity is 4,096.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.indexed_dataset import IndexedDataset, write_index
from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import NO_LABEL, PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.files import write_json

CAPACITY = 4096
PACKED_DOCUMENTS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Packing, opening and gathering, timed")
    parser.add_argument("--documents", type=int, default=776_000)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    lengths = make_lengths(arguments.documents)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *bench_packing(lengths, arguments.repetitions),
            *bench_reading(Path(folder), lengths, arguments.repetitions),
            *bench_gather(Path(folder), arguments.repetitions),
        ]
    command = " ".join(["python", *sys.argv])
    for row in rows:
        row["command"] = command
        print(
            f"{row['name']:24} {row['value'] * 1e6:12.2f} us   {row['baseline'] or '-':24}"
            f" {(row['baseline_value'] or 0) * 1e6:12.2f} us   {row['ratio'] or 0:8.1f}x"
        )
    if arguments.output is not None:
        write_json(arguments.output, {"machine": machine(), "rows": rows})


def make_lengths(n: int) -> NDArray[np.int32]:
    """Tokens of synthetic documents, the same for every run."""
    mean, sigma = 350.0, 0.7
    random = np.random.Generator(np.random.PCG64(1234))
    lengths = random.lognormal(np.log(mean) - sigma * sigma / 2, sigma, n)
    return np.clip(np.rint(lengths), 16, CAPACITY).astype(np.int32)


def bench_packing(lengths: NDArray[np.int32], repetitions: int) -> list[dict[str, Any]]:
    """Both strategies; `random` beside Megatron's two shuffles and its sample index."""
    for strategy in ("random", "best_fit"):
        packs = build_pack_index(lengths, capacity=CAPACITY, strategy=strategy, seed=0)
        assert np.array_equal(np.sort(packs.documents), np.arange(len(lengths)))
        assert np.add.reduceat(lengths[packs.documents], packs.offsets[:-1]).max() <= CAPACITY
        print(f"{strategy}: {packs.statistics(lengths)}")
    n = len(lengths)
    best_fit = median_seconds(
        lambda: build_pack_index(lengths, capacity=CAPACITY, strategy="best_fit", seed=0),
        repetitions,
    )
    random = median_seconds(
        lambda: build_pack_index(lengths, capacity=CAPACITY, strategy="random", seed=0),
        repetitions,
    )
    megatron = median_seconds(lambda: megatron_sample_index(lengths), repetitions)
    return [
        row("pack_best_fit_776k", n, best_fit),
        row("pack_random_776k", n, random, "megatron.core sample index", megatron),
    ]


def megatron_sample_index(lengths: NDArray[np.int32]) -> NDArray[Any]:
    """What megatron.core's GPTDataset computes for one epoch: order, samples, order of samples."""
    from megatron.core.datasets import helpers

    random = np.random.RandomState(0)
    documents = np.arange(len(lengths), dtype=np.int32)
    random.shuffle(documents)
    tokens = int(lengths.sum(dtype=np.int64))
    samples = helpers.build_sample_idx(lengths, documents, CAPACITY, 1, tokens, True, True)
    order = np.arange(len(samples) - 1, dtype=np.uint32)
    random.shuffle(order)
    return samples


def bench_reading(
    folder: Path, lengths: NDArray[np.int32], repetitions: int
) -> list[dict[str, Any]]:
    """Opening, and one document at random, beside megatron.core's IndexedDataset."""
    from megatron.core.datasets import indexed_dataset as megatron

    prefix = folder / "reading"
    dtype = np.dtype(np.uint16)
    tokens = np.arange(lengths.sum(dtype=np.int64), dtype=np.uint32) % 32_000
    tokens.astype(dtype).tofile(f"{prefix}.bin")
    with Path(f"{prefix}.idx").open("wb") as file:
        write_index(file, lengths.tolist(), dtype)
    ours, theirs = IndexedDataset(prefix), megatron.IndexedDataset(str(prefix))
    order = np.random.default_rng(0).permutation(len(lengths))[:20_000].tolist()
    assert all(np.array_equal(ours.document(i), theirs[i]) for i in order)

    def seconds_a_document(get: Callable[[int], Any]) -> float:
        def get_all() -> None:
            for i in order:
                get(i)

        return median_seconds(get_all, repetitions) / len(order)

    n = len(lengths)
    open_ours = median_seconds(lambda: IndexedDataset(prefix), repetitions)
    open_theirs = median_seconds(lambda: megatron.IndexedDataset(str(prefix)), repetitions)
    get_ours = seconds_a_document(ours.document)
    get_theirs = seconds_a_document(theirs.__getitem__)
    return [
        row("open_776k", n, open_ours, "megatron.core", open_theirs),
        row("get_python", n, get_ours, "megatron.core", get_theirs),
    ]


def bench_gather(folder: Path, repetitions: int) -> list[dict[str, Any]]:
    """One pack with all its metadata, beside the same in NumPy."""
    prefix = folder / "packed"
    random = np.random.default_rng(0)
    with TokenizedDatasetWriter(prefix, vocab_size=32_000) as writer:
        for i, length in enumerate(make_lengths(PACKED_DOCUMENTS).tolist()):
            ids = random.integers(0, 32_000, length)
            spans = [(length // 3, length)]
            writer.add(ids, spans, id=str(i), source="", language="en", format="cot", topic="")
        writer.finish()
    dataset = TokenizedDataset(prefix)
    packs = build_pack_index(dataset.lengths, capacity=CAPACITY, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=0)
    for pack_idx in range(50):
        batch, expected = reader.read(pack_idx), numpy_batch(dataset, packs.pack(pack_idx))
        for name, array in expected.items():
            assert np.array_equal(getattr(batch, name)[: len(array)], array), name

    out = reader.read(0)

    def read_all() -> None:
        for pack_idx in range(packs.num_packs):
            reader.read(pack_idx, out=out)

    def numpy_all() -> None:
        for pack_idx in range(packs.num_packs):
            numpy_batch(dataset, packs.pack(pack_idx))

    ours = median_seconds(read_all, repetitions) / packs.num_packs
    theirs = median_seconds(numpy_all, max(repetitions // 3, 1)) / packs.num_packs
    return [row("gather_4096_python", packs.num_packs, ours, "numpy", theirs)]


def numpy_batch(dataset: TokenizedDataset, documents: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """One pack the NumPy way, document by document."""
    tokens = np.zeros(CAPACITY, np.int64)
    labels = np.full(CAPACITY, NO_LABEL, np.int64)
    position_ids = np.empty(CAPACITY, np.int64)
    document_ids = np.empty(CAPACITY, np.int32)
    ends = [0]
    for document_id, idx in enumerate(documents.tolist()):
        ids = dataset.document(idx)
        begin, end = ends[-1], ends[-1] + len(ids)
        tokens[begin:end] = ids
        for first, last in dataset.spans(idx).tolist():
            first = max(first, 1)
            labels[begin + first - 1 : begin + last - 1] = ids[first:last]
        position_ids[begin:end] = np.arange(len(ids))
        document_ids[begin:end] = document_id
        ends.append(end)
    position_ids[ends[-1] :] = np.arange(CAPACITY - ends[-1])
    document_ids[ends[-1] :] = len(documents)
    return {
        "tokens": tokens,
        "labels": labels,
        "loss_weights": (labels != NO_LABEL).astype(np.float32),
        "position_ids": position_ids,
        "document_ids": document_ids,
        "cu_seqlens": np.array(ends, np.int32),
    }


def median_seconds(call: Callable[[], Any], repetitions: int) -> float:
    """The median time of a call, after one call to warm up."""
    call()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def row(
    name: str,
    n: int,
    value: float,
    baseline: str | None = None,
    baseline_value: float | None = None,
) -> dict[str, Any]:
    """One row of the result; without a peer the baseline is null."""
    return {
        "name": name,
        "n": n,
        "value": value,
        "unit": "s",
        "baseline": baseline,
        "baseline_value": baseline_value,
        "ratio": None if baseline_value is None else baseline_value / value,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main()
