"""Measures decontamination on the published files: the figures of docs/data.md.

    python tools/measure_decontamination.py FOLDER [--show N]

FOLDER has the sets as `published_files.py` names them. Two tables: how many Chinese examples each n
flags and how alike they are to the test question; and what the four test sets share with each
training file. `--show N` prints the Chinese examples that n = N flags and no longer one does.
"""

import argparse
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from published_files import TRAINING_FILES, benchmark_recipes, worked_answer

from dsm_engine.data.example import Example
from dsm_engine.data.quality.decontamination import (
    CHINESE_NGRAM,
    CONTAINED,
    ENGLISH_NGRAM,
    NGRAM,
    QUESTION,
    BenchmarkRecipe,
    benchmark_texts,
    load_benchmarks,
)

_CHINESE_NGRAMS = (8, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 25, 30, 35, 40)
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[a-z]+|[\u4e00-\u9fff]")
_SHINGLE = 3
_ALIKE, _UNLIKE = 0.5, 0.3


@dataclass(frozen=True, slots=True)
class Text:
    """A question for comparisons that do not go through the core."""

    shingles: frozenset[tuple[str, ...]]
    numbers: tuple[str, ...]


@cache
def comparable(text: str) -> Text:
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    last = max(1, len(tokens) - _SHINGLE + 1)
    return Text(
        shingles=frozenset(tuple(tokens[i : i + _SHINGLE]) for i in range(last)),
        numbers=tuple(token for token in tokens if token[0].isdigit()),
    )


def jaccard(a: str, b: str) -> float:
    """Of the shingles of three tokens."""
    first, second = comparable(a).shingles, comparable(b).shingles
    return len(first & second) / len(first | second)


def same_problems(examples: Sequence[Example], questions: Sequence[str]) -> set[int]:
    """The examples with a test question of the same numbers and similarity 0.5 or more."""
    by_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for question in questions:
        by_numbers[comparable(question).numbers].append(question)
    return {
        idx
        for idx, example in enumerate(examples)
        if any(
            jaccard(example.question, question) >= _ALIKE
            for question in by_numbers[comparable(example.question).numbers]
        )
    }


def print_chinese_ngrams(folder: Path, show: int | None) -> None:
    recipes = benchmark_recipes(folder, languages=["zh"])
    questions: list[list[str]] = [
        [text for _, text in benchmark_texts(recipe)] for recipe in recipes
    ]
    examples = [
        example
        for file in TRAINING_FILES
        for example in file.examples(folder)
        if example.language == "zh"
    ]
    same = same_problems(examples, [text for texts in questions for text in texts])
    print(
        f"{len(examples):,} Chinese examples, {len(same)} with a test question's numbers and words"
    )
    print("| n | flagged | alike | between | unlike | same problem |\n| --- |" + " --- |" * 5)
    flagged: dict[int, dict[int, str]] = {}
    for ngram in _CHINESE_NGRAMS:
        flagged[ngram] = matched_questions(recipes, questions, examples, ngram)
        likeness = [jaccard(examples[i].question, text) for i, text in flagged[ngram].items()]
        alike = sum(value >= _ALIKE for value in likeness)
        unlike = sum(value < _UNLIKE for value in likeness)
        between = len(likeness) - alike - unlike
        found = len(same & flagged[ngram].keys())
        print(f"| {ngram} | {len(likeness)} | {alike} | {between} | {unlike} | {found} |")
    if show is not None:
        longer = set().union(*(set(flagged[n]) for n in _CHINESE_NGRAMS if n > show))
        for idx in sorted(flagged[show].keys() - longer):
            print(f"\n  train {examples[idx].question}\n  test  {flagged[show][idx]}")


def matched_questions(
    recipes: Sequence[BenchmarkRecipe],
    questions: Sequence[list[str]],
    examples: Sequence[Example],
    ngram: int,
) -> dict[int, str]:
    """From a flagged example's number to the test question it was flagged for."""
    index = load_benchmarks(recipes, chinese_ngram=ngram)
    hits = index.find([e.question for e in examples], [worked_answer(e) for e in examples])
    flagged: dict[int, str] = {}
    for idx in np.flatnonzero(hits.benchmark >= 0).tolist():
        flagged[idx] = questions[int(hits.benchmark[idx])][int(hits.item[idx])]
    return flagged


def print_contamination(folder: Path, *, answers: bool) -> None:
    index = load_benchmarks(benchmark_recipes(folder, answers=answers))
    what = "questions and worked answers" if answers else "questions"
    print(f"\nTest {what}, n = {ENGLISH_NGRAM} in English, {CHINESE_NGRAM} in Chinese:")
    for benchmark in index.benchmarks:
        print(f"  {benchmark.name}: {benchmark.num_items} items, texts {dict(benchmark.coverage)}")
    names = [benchmark.name for benchmark in index.benchmarks]
    print("| training file | examples |" + "".join(f" {name} |" for name in names) + " by |")
    print("| --- | --- |" + " --- |" * (len(names) + 1))
    for file in TRAINING_FILES:
        examples = list(file.examples(folder))
        hits = index.find([e.question for e in examples], [worked_answer(e) for e in examples])
        cells = [f"{len(examples):,}"]
        for number in range(len(names)):
            items = hits.item[hits.benchmark == number].tolist()
            cells.append(f"{len(items)} ({len(set(items))})" if items else "")
        kinds = Counter(hits.kind.tolist())
        cells.append(f"{kinds[QUESTION]} + {kinds[NGRAM]} + {kinds[CONTAINED]}")
        print(f"| {file.name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", type=int, choices=_CHINESE_NGRAMS, metavar="N")
    arguments = parser.parse_args()
    print_chinese_ngrams(arguments.folder, arguments.show)
    for answers in (False, True):
        print_contamination(arguments.folder, answers=answers)


if __name__ == "__main__":
    main()
