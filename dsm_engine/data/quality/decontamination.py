"""Examples that hold a benchmark's questions, found by n-grams as DeepSeekMath did (section 2.1).

A benchmark text is found in a training example where n of its words stand in a row there, in the
question or in the answer: 10 words of English. A shorter text must stand there whole. A text of
fewer than 3 words is found only where it is the training question; the same goes for any text.

- English words are what white space separates, in lower case and without the punctuation around
  them. A formula in `$`, `$$`, `\\(` or `\\[` is part of one word, without its spaces.
- Chinese words are single characters, numbers (13 is not 3), Latin words and mathematical signs;
  white space and punctuation are none. docs/data.md measures the longer n.

Every training text is looked at in both ways, whatever its language is said to be. Runs of words
are compared by 64-bit hashes and not looked at again: one false hit among 776,000 examples of 300
words, against 400,000 runs of benchmarks, has odds below 1 in 100,000.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dsm_engine import _core
from dsm_engine.data.example import ExampleFault, Language
from dsm_engine.data.quality.normalization import normalized, whole_characters
from dsm_engine.data.sources.records import read_records
from dsm_engine.data.sources.rows import parse_object
from dsm_engine.errors import DsmError
from dsm_engine.recipes import Section

ENGLISH_NGRAM = 10
CHINESE_NGRAM = 18
_SHORTEST = 3
_CHINESE_SHORTEST = 6

NOT_FOUND, NGRAM, CONTAINED, QUESTION = 0, 1, 2, 3
"""The kinds of hits: an n-gram, a whole text shorter than that, the whole training question."""

COVERAGES = ("nothing", "equality", "contained", "ngram")
"""How a benchmark text is found: it has no words, is too short for more than equality, is looked
for as a whole, or by its n-grams."""


class BenchmarkRecipe(Section):
    """A benchmark file whose texts are not to be trained on."""

    name: str = Field(min_length=1)
    path: Path
    """JSONL, a JSON list or Parquet; text may be compressed with gzip or Zstandard."""
    language: Language
    fields: list[str] = Field(default=["question"], min_length=1)
    """The keys of a record's texts; `messages.0.content` is one within another."""


class DecontaminationRecipe(Section):
    """The benchmarks whose text is looked for in examples."""

    benchmarks: list[BenchmarkRecipe] = Field(min_length=1)
    ngram: int = Field(default=ENGLISH_NGRAM, ge=_SHORTEST)
    """English words in a row."""
    chinese_ngram: int = Field(default=CHINESE_NGRAM, ge=_CHINESE_SHORTEST)
    """Chinese words in a row: characters, numbers, Latin words."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What was found in n examples."""

    benchmark: NDArray[np.int32]
    """[n]; the number of a benchmark, in the order they were added, or -1"""
    item: NDArray[np.int32]
    """[n]; the number of the benchmark's item, or -1"""
    kind: NDArray[np.uint8]
    """[n]; NOT_FOUND, NGRAM, CONTAINED or QUESTION"""


@dataclass(slots=True)
class Benchmark:
    """A benchmark in an index."""

    name: str
    num_items: int = 0
    coverage: Counter[str] = field(default_factory=Counter)
    """Its texts by how they are found: see COVERAGES."""


class ContaminationIndex:
    """The benchmarks' texts, to be looked for in examples.

    It is built once; after that any number of threads may look, and processes forked from this one
    share its memory.
    """

    def __init__(self, *, ngram: int = ENGLISH_NGRAM, chinese_ngram: int = CHINESE_NGRAM) -> None:
        """Raises DsmError where an n is smaller than the shortest text it stands in for."""
        self.benchmarks: list[Benchmark] = []
        self._index = _core.ContaminationIndex(
            ngram=ngram,
            shortest=_SHORTEST,
            chinese_ngram=chinese_ngram,
            chinese_shortest=_CHINESE_SHORTEST,
        )
        self._benchmark_of = np.empty(0, np.int32)
        self._item_of = np.empty(0, np.int32)

    def add(
        self,
        name: str,
        texts: Sequence[str],
        language: Language,
        *,
        items: Sequence[int] | None = None,
    ) -> None:
        """More texts of the benchmark `name`, a new one or the last one added.

        `items` says which item each text is of; without it each text is an item. An n-gram that
        several texts have counts as the first one's. Raises DsmError for half a character.
        """
        if not self.benchmarks or self.benchmarks[-1].name != name:
            if any(benchmark.name == name for benchmark in self.benchmarks):
                raise DsmError(f"benchmark {name!r} stands twice; names are different")
            self.benchmarks.append(Benchmark(name))
        benchmark = self.benchmarks[-1]
        if items is None:
            items = range(benchmark.num_items, benchmark.num_items + len(texts))
        with whole_characters():
            coverage = self._index.add(normalized(texts), chinese=language == "zh")
        benchmark.coverage.update(COVERAGES[code] for code in coverage.tolist())
        benchmark.num_items = max(benchmark.num_items, max(items, default=-1) + 1)
        number = np.full(len(texts), len(self.benchmarks) - 1, np.int32)
        self._benchmark_of = np.concatenate([self._benchmark_of, number])
        self._item_of = np.concatenate([self._item_of, np.asarray(items, np.int32)])

    def find(self, questions: Sequence[str], answers: Sequence[str], *, threads: int = 1) -> Hits:
        """For each example its first hit: the whole question, else from the left, question first.

        An answer is the whole worked answer. Raises DsmError for half a character.
        """
        with whole_characters():
            texts, kinds = self._index.find(
                normalized(questions), normalized(answers), threads=threads
            )
        found = texts >= 0
        benchmark = np.full(len(texts), -1, np.int32)
        item = np.full(len(texts), -1, np.int32)
        benchmark[found] = self._benchmark_of[texts[found]]
        item[found] = self._item_of[texts[found]]
        return Hits(benchmark=benchmark, item=item, kind=kinds)


def load_benchmarks(
    recipes: Sequence[BenchmarkRecipe],
    *,
    ngram: int = ENGLISH_NGRAM,
    chinese_ngram: int = CHINESE_NGRAM,
) -> ContaminationIndex:
    """The index of the recipes' benchmarks. Raises DsmError for a missing file or field."""
    index = ContaminationIndex(ngram=ngram, chinese_ngram=chinese_ngram)
    names = [recipe.name for recipe in recipes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DsmError(f"benchmark {min(twice)!r} stands twice; names are different")
    for recipe in recipes:
        items, texts = [], []
        for item, text in benchmark_texts(recipe):
            items.append(item)
            texts.append(text)
        if not texts:
            raise DsmError(f"{recipe.path}: holds no texts of the benchmark {recipe.name!r}")
        index.add(recipe.name, texts, recipe.language, items=items)
    return index


def benchmark_texts(recipe: BenchmarkRecipe) -> Iterator[tuple[int, str]]:
    """A benchmark's texts, each with the number of its item. Raises DsmError."""
    for item, row in enumerate(read_records(recipe.path)):
        try:
            record = parse_object(row)
        except ExampleFault as fault:
            raise DsmError(f"{row.place}: {fault} (benchmark {recipe.name!r})") from fault
        for key in recipe.fields:
            text = _value_at(record, key)
            if isinstance(text, int | float) and not isinstance(text, bool):
                text = str(text)
            if not isinstance(text, str) or not text.strip():
                raise DsmError(
                    f"{row.place}: no text under {key!r} (keys: {', '.join(sorted(record))});"
                    f" see the fields of benchmark {recipe.name!r}"
                )
            yield item, text


def _value_at(record: dict[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value
