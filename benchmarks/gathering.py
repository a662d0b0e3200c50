"""Gathering packs of 4,096 tokens with all metadata, beside NumPy and Megatron's GPT sample."""

from pathlib import Path
from typing import Any

import core_program
import numpy as np
from lengths import CAPACITY, make_lengths
from numpy.typing import NDArray
from result_file import Row, Timing, measure, summarize

from dsm_engine.data.pack_index import PackIndex, build_pack_index
from dsm_engine.data.packed_batch import NO_LABEL, PackedBatch, PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter

_VOCAB_SIZE = 32_000
_CHECKED_PACKS = 50
_BATCH = 16  # packs a call, whose buffers stay in the cache
_BATCH_OF_THREADS = 128
_CHECKSUM_FACTORS = {
    "tokens": 1,
    "labels": 3,
    "loss_weights": 5,
    "position_ids": 7,
    "document_ids": 11,
    "cu_seqlens": 13,
}


def bench_gathering(
    folder: Path, num_documents: int, repetitions: int, core_bench: Path | None
) -> list[Row]:
    dataset = _write_dataset(folder / "packed", num_documents)
    packs = build_pack_index(dataset.lengths, capacity=CAPACITY, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=0)
    for pack_idx in range(min(_CHECKED_PACKS, packs.num_packs)):
        batch, expected = reader.read(pack_idx), numpy_batch(dataset, packs.pack(pack_idx))
        for name, array in expected.items():
            assert np.array_equal(getattr(batch, name)[: len(array)], array), name

    ours = _time_batches(reader, _BATCH, 1, repetitions)
    alone = _time_reader(reader, repetitions)
    in_numpy = _time_numpy(dataset, packs, max(repetitions // 3, 1))
    in_megatron = _time_megatron(folder, dataset, max(repetitions // 3, 1))
    n = packs.num_packs

    def row(name: str, value: Timing, baseline: str, baseline_value: Timing) -> Row:
        return Row(name=name, n=n, value=value, baseline=baseline, baseline_value=baseline_value)

    rows = [
        row("gather_4096_python", ours, "numpy, document by document", in_numpy),
        row(
            "gather_4096_python_vs_megatron_gpt",
            ours,
            "megatron.core: GPTDataset[i], no resets, no mask",
            in_megatron,
        ),
    ]
    rows.append(
        row("gather_4096_python_one_a_call", alone, "numpy, document by document", in_numpy)
    )
    one, two = (_time_batches(reader, _BATCH_OF_THREADS, t, repetitions) for t in (1, 2))
    rows.append(row("gather_4096_python_2_threads", two, "the same on 1 thread", one))
    if core_bench is not None:
        for dtype, in_cpp in _time_core(core_bench, folder, reader, repetitions).items():
            suffix = "" if dtype == "int64" else f"_{dtype}"
            rows.append(
                row(f"gather_4096_cpp{suffix}", in_cpp, "numpy, document by document", in_numpy)
            )
    return rows


def numpy_batch(dataset: TokenizedDataset, documents: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """One pack the NumPy way, document by document, with the checks of ours."""
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


def _write_dataset(prefix: Path, num_documents: int) -> TokenizedDataset:
    """Random tokens; the last two thirds of each document are supervised."""
    random = np.random.default_rng(0)
    with TokenizedDatasetWriter(prefix, vocab_size=_VOCAB_SIZE) as writer:
        for i, length in enumerate(make_lengths(num_documents).tolist()):
            ids = random.integers(0, _VOCAB_SIZE, length, np.uint16)
            spans = [(length // 3, length)]
            writer.add(ids, spans, id=str(i), source="", language="en", format="cot", topic="")
        writer.finish()
    return TokenizedDataset(prefix)


def _time_reader(reader: PackReader, repetitions: int) -> Timing:
    """Seconds a pack, into the same buffers."""
    out = reader.read(0)

    def read_all() -> None:
        for pack_idx in range(reader.packs.num_packs):
            reader.read(pack_idx, out=out)

    return measure(read_all, repetitions).per(reader.packs.num_packs)


def _time_batches(reader: PackReader, batch: int, threads: int, repetitions: int) -> Timing:
    """Seconds a pack where one call gathers many, into the same buffers."""
    num_packs = reader.packs.num_packs
    batch = min(batch, num_packs)
    order = np.arange(num_packs - num_packs % batch).reshape(-1, batch)
    out = reader.read_batch(order[0])

    def read_all() -> None:
        for pack_indices in order:
            reader.read_batch(pack_indices, out=out, threads=threads)

    return measure(read_all, repetitions).per(order.size)


def _time_numpy(dataset: TokenizedDataset, packs: PackIndex, repetitions: int) -> Timing:
    def read_all() -> None:
        for pack_idx in range(packs.num_packs):
            numpy_batch(dataset, packs.pack(pack_idx))

    return measure(read_all, repetitions).per(packs.num_packs)


def _time_megatron(folder: Path, dataset: TokenizedDataset, repetitions: int) -> Timing:
    """Seconds a sample of megatron.core's GPTDataset over the same files."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    prefix = str(dataset.prefix)
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=CAPACITY,
        blend=([prefix], None),
        split="1,0,0",
        path_to_cache=str(folder / "megatron_cache"),
        tokenizer=NullTokenizer(_VOCAB_SIZE),  # pyright: ignore[reportArgumentType]
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    samples = GPTDataset(
        GPTDataset.build_low_level_dataset(prefix, config),
        prefix,
        np.arange(dataset.num_documents, dtype=np.int32),
        None,
        Split.train,
        config,
    )
    first = samples[0]
    assert first.keys() == {"tokens", "labels", "loss_mask", "position_ids"}
    assert len(first["tokens"]) == CAPACITY
    assert (first["tokens"][1:] == first["labels"][:-1]).all()

    def read_all() -> None:
        for i in range(len(samples)):
            samples[i]

    return measure(read_all, repetitions).per(len(samples))


def _time_core(
    core_bench: Path, folder: Path, reader: PackReader, repetitions: int
) -> dict[str, Timing]:
    """Seconds a pack in C++ by dtype of the tokens, its batches being the same as Python's."""
    dataset, packs, prefix = reader.dataset, reader.packs, folder / "packs"
    for suffix, array in (
        (".offsets", packs.offsets),
        (".documents", packs.documents),
        (".span_offsets", dataset.span_table.offsets),
        (".spans", dataset.span_table.spans),
    ):
        array.tofile(prefix.with_suffix(suffix))
    result = core_program.run(
        core_bench, "gather", dataset.prefix, _VOCAB_SIZE, CAPACITY, prefix, repetitions
    )
    expected = sum(_checksum(reader.read(i)) for i in range(packs.num_packs)) % (1 << 64)
    timings = {}
    for dtype in ("int64", "int32"):
        assert result[f"checksum_{dtype}"] == expected
        timings[dtype] = summarize(result[dtype]).per(packs.num_packs)
    return timings


def _checksum(batch: PackedBatch) -> int:
    """As in core_bench.cpp: sum of (i + 1) * x[i] of each array, times its factor."""
    total = 0
    for name, factor in _CHECKSUM_FACTORS.items():
        values = getattr(batch, name).astype(np.int64).view(np.uint64)
        total += factor * int((np.arange(1, len(values) + 1, dtype=np.uint64) * values).sum())
    return total
