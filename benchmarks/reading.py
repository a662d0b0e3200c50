"""Opening a dataset and getting documents out of it, beside megatron.core's IndexedDataset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import core_program
import numpy as np
from numpy.typing import NDArray
from result_file import Row, measure, summarize

from dsm_engine.data.indexed_dataset import IndexedDataset, write_index

_DOCUMENTS_READ = 20_000
_BATCH = 256
_DISTINCT_TOKENS = 32_000


def bench_reading(
    folder: Path, lengths: NDArray[np.int32], repetitions: int, core_bench: Path | None
) -> list[Row]:
    from megatron.core.datasets import indexed_dataset as megatron

    prefix = folder / "reading"
    write_documents(prefix, lengths)
    ours, theirs = IndexedDataset(prefix), megatron.IndexedDataset(str(prefix))
    order = np.random.default_rng(0).permutation(len(lengths))[:_DOCUMENTS_READ]
    assert all(np.array_equal(ours.document(i), theirs[i]) for i in order.tolist())

    opened = Row(
        name="open_776k",
        n=len(lengths),
        value=measure(lambda: IndexedDataset(prefix), repetitions),
        baseline="megatron.core: IndexedDataset(prefix)",
        baseline_value=measure(lambda: megatron.IndexedDataset(str(prefix)), repetitions),
    )
    rows = [opened, *_bench_views(ours, theirs, order, repetitions)]
    rows.append(_bench_batches(ours, theirs, order, repetitions))
    if core_bench is not None:
        rows += _bench_core(core_bench, prefix, ours, theirs, order, repetitions)
    return rows


def write_documents(prefix: Path, lengths: NDArray[np.int32]) -> None:
    """PREFIX.bin and .idx: token ids that count up and begin again."""
    block = np.arange(_DISTINCT_TOKENS, dtype=np.uint16)
    tokens = int(lengths.sum(dtype=np.int64))
    with Path(f"{prefix}.bin").open("wb") as file:
        for begin in range(0, tokens, len(block)):
            file.write(block[: tokens - begin].data)
    with Path(f"{prefix}.idx").open("wb") as file:
        write_index(file, lengths.tolist(), block.dtype)


def _bench_views(ours: Any, theirs: Any, order: NDArray[Any], repetitions: int) -> list[Row]:
    """One document at random as an array over the mapping; no token is touched."""

    def get_all(get: Callable[[int], Any], indices: list[int]) -> None:
        for i in indices:
            get(i)

    indices = order.tolist()
    value = measure(lambda: get_all(ours.document, indices), repetitions)
    baseline = measure(lambda: get_all(theirs.__getitem__, indices), repetitions)
    return [
        Row(
            name="get_python",
            n=len(indices),
            value=value.per(len(indices)),
            baseline="megatron.core: dataset[i]",
            baseline_value=baseline.per(len(indices)),
        )
    ]


def _bench_batches(ours: Any, theirs: Any, order: NDArray[Any], repetitions: int) -> Row:
    """Documents copied out of the mapping, end to end, some hundred a call."""
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]

    def get_theirs(batch: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([theirs[i] for i in batch.tolist()])

    for batch in batches:
        tokens, offsets = ours.documents(batch)
        assert np.array_equal(tokens, get_theirs(batch))
        assert np.array_equal(np.diff(offsets), theirs.sequence_lengths[batch])

    def ours_all() -> None:
        for batch in batches:
            ours.documents(batch)

    def theirs_all() -> None:
        for batch in batches:
            get_theirs(batch)

    return Row(
        name="get_batch_python",
        n=len(order),
        value=measure(ours_all, repetitions).per(len(order)),
        baseline="megatron.core: dataset[i] of each, concatenated",
        baseline_value=measure(theirs_all, repetitions).per(len(order)),
    )


def _bench_core(
    core_bench: Path,
    prefix: Path,
    ours: IndexedDataset,
    theirs: Any,
    order: NDArray[Any],
    repetitions: int,
) -> list[Row]:
    """The same documents in C++: as views, and copied."""
    documents = prefix.with_name("order")
    order.astype(np.int64).tofile(documents)
    result = core_program.run(core_bench, "get", prefix, documents, repetitions)
    last_tokens = [ours.document(i)[-1:].view(np.uint8)[-1] for i in order.tolist()]
    assert result["num_tokens"] == ours.lengths[order].sum(dtype=np.int64)
    assert result["last_bytes"] == np.sum(last_tokens, dtype=np.int64)

    def get_views() -> None:
        for i in indices:
            theirs[i]

    def get_copies() -> None:
        for i in indices:
            theirs[i].copy()

    indices, n = order.tolist(), len(order)
    return [
        Row(
            name="get_cpp",
            n=n,
            value=summarize(result["views"]).per(n),
            baseline="megatron.core: dataset[i]",
            baseline_value=measure(get_views, repetitions).per(n),
        ),
        Row(
            name="get_copy_cpp",
            n=n,
            value=summarize(result["copies"]).per(n),
            baseline="megatron.core: dataset[i].copy()",
            baseline_value=measure(get_copies, repetitions).per(n),
        ),
    ]
