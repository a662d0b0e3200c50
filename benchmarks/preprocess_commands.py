"""tools/preprocess_data.py as a whole command, beside Megatron's and the libraries alone."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from result_file import Row, Timing, measure, summarize

_FOLDER = Path(__file__).resolve().parent
_TOOL = _FOLDER.parent / "tools" / "preprocess_data.py"
_STAND_IN = _FOLDER / "megatron_stand_in.py"
_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """One kind of tokenizer, for all who take part."""

    row: str
    tokenizer_type: str
    model: Path
    library: str
    """The library that defines the ids."""
    encode: Callable[[Sequence[str], Path, int], object]
    """Encodes texts by that library, with a model, on some threads."""
    remembers: bool = False
    """Whether a start leaves facts of the model in the cache folder for the next."""


def bench_commands(
    folder: Path, corpus: Path, made_of: str, jobs: Sequence[Job], *, workers: int, repetitions: int
) -> list[Row]:
    """The rows of every job: command against command, and against the library alone."""
    texts = [orjson.loads(line)["text"] for line in corpus.read_bytes().splitlines()]
    rows = []
    for job in jobs:
        rows += _bench_job(folder, corpus, made_of, texts, job, workers, repetitions)
    return rows


def _bench_job(
    folder: Path,
    corpus: Path,
    made_of: str,
    texts: list[str],
    job: Job,
    workers: int,
    repetitions: int,
) -> list[Row]:
    ours, theirs = folder / f"{job.row}_ours", folder / f"{job.row}_theirs"
    flags = [
        *("--input", corpus, "--tokenizer-type", job.tokenizer_type),
        *("--tokenizer-model", job.model, "--workers", workers),
    ]
    stand_in = [sys.executable, _STAND_IN, *flags, "--output-prefix", theirs]
    command = [sys.executable, _TOOL, *flags, "--output-prefix", ours, "--append-eod"]
    cache = folder / f"{job.row}_cache"
    megatron = summarize([_seconds(stand_in, cache)])
    _seconds(command, cache)
    for suffix in (".bin", ".idx"):
        names = [Path(f"{prefix}_text_document{suffix}") for prefix in (ours, theirs)]
        assert names[0].read_bytes() == names[1].read_bytes(), f"{job.row}: other {suffix} bytes"
    value = summarize([_seconds(command, cache) for _ in range(repetitions)])
    peers: list[tuple[str, str, Timing | None]] = [
        (
            "",
            f"a stand-in of Megatron-LM's preprocess_data through megatron.core, {workers} workers,"
            f" {made_of}",
            megatron,
        ),
        (
            f"_vs_{job.library}",
            f"{job.library} alone, {workers} threads, texts in memory",
            measure(lambda: _by_library(texts, job, workers), 1, warm_up=0),
        ),
        (
            "_vs_datasets_map",
            f"datasets.map with {job.library}, {workers} processes",
            _datasets_map(corpus, job, workers),
        ),
    ]
    rows = [
        Row(
            name=f"{job.row}{ending}",
            n=len(texts),
            value=value,
            baseline=who,
            baseline_value=timing,
        )
        for ending, who, timing in peers
    ]
    if job.remembers:
        empty = [folder / f"{job.row}_cache_{idx}" for idx in range(repetitions)]
        rows.append(
            Row(
                name=f"{job.row}_first_start",
                n=len(texts),
                value=summarize([_seconds(command, cache) for cache in empty]),
                baseline=f"{job.row}, which starts with what an earlier start remembered",
                baseline_value=value,
            )
        )
    return rows


def _by_library(texts: list[str], job: Job, workers: int) -> None:
    for begin in range(0, len(texts), _BATCH):
        job.encode(texts[begin : begin + _BATCH], job.model, workers)


def _datasets_map(corpus: Path, job: Job, workers: int) -> Timing | None:
    if importlib.util.find_spec("datasets") is None:
        print("datasets is not installed: no baseline for the rows against datasets.map")
        return None
    import datasets  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "json", data_files=str(corpus), split="train", cache_dir=str(corpus.parent / "datasets")
    )

    def ids(batch: dict[str, list[str]]) -> dict[str, object]:
        return {"ids": job.encode(batch["text"], job.model, 1)}

    return measure(
        lambda: loaded.map(
            ids,
            batched=True,
            num_proc=workers,
            remove_columns=["text"],
            load_from_cache_file=False,
        ),
        1,
        warm_up=0,
    )


def _seconds(command: Sequence[object], cache: Path) -> float:
    return seconds_and_output(command, {"XDG_CACHE_HOME": str(cache)})[0]


def seconds_and_output(
    command: Sequence[object], environment: Mapping[str, str] | None = None
) -> tuple[float, str]:
    """From before the process starts to after it has ended, and what it printed.

    `environment` is what it has besides this process's.
    """
    words = list(map(str, command))
    variables = {**os.environ, **(environment or {})}
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=variables)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return seconds, done.stdout
