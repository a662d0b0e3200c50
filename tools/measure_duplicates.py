"""Measures the search for near duplicates on the published files: the figures of docs/data.md.

    python tools/measure_duplicates.py FOLDER

FOLDER has the sets as `published_files.py` names them. Two tables: the verdicts on each file,
beside those that the exact Jaccard similarity of all pairs gives; and how many copies with words
left out are found, by the exact similarity of copy and original. Exact means: sets of shingles in
Python. A minute.
"""

import argparse
import random
import re
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from published_files import TRAINING_FILES

from dsm_engine.data.quality.deduplication import EXACT, NEAR, NEW, DuplicateFinder, fingerprints
from dsm_engine.data.quality.deduplication import duplicate_text as text_of

_THRESHOLD = 0.9
_SHINGLE = 5
_TOKEN = re.compile(r"\x1f[a-z]+|\\?[a-z]+|[0-9]+(?:\.[0-9]+)?|[^\s$\\~]")
_EDGES = (0.80, 0.85, 0.88, 0.89, 0.90, 0.91, 0.92, 0.95)
_LEFT_OUT = (0.002, 0.005, 0.01, 0.02, 0.03)
_WORD = re.compile(r"(?<=[ a-z一-鿿])(?:[a-z]+ |[一-鿿])")


@dataclass(frozen=True, slots=True)
class Text:
    """A text as Python sees it."""

    tokens: tuple[str, ...]
    numbers: tuple[str, ...]
    shingles: frozenset[tuple[str, ...]]


def read_text(text: str) -> Text:
    tokens = tuple(_TOKEN.findall(unicodedata.normalize("NFKC", text).lower()))
    last = max(1, len(tokens) - _SHINGLE + 1)
    return Text(
        tokens=tokens,
        numbers=tuple(token for token in tokens if token[0].isdigit() or token[0] == "\x1f"),
        shingles=frozenset(tokens[i : i + _SHINGLE] for i in range(last)),
    )


def jaccard(a: Text, b: Text) -> float:
    return len(a.shingles & b.shingles) / len(a.shingles | b.shingles)


def exact_verdicts(texts: Sequence[Text]) -> list[int]:
    """What a DuplicateFinder would say that compares with every document kept."""
    kept: dict[tuple[str, ...], list[Text]] = defaultdict(list)
    verdicts = []
    for text in texts:
        earlier = kept[text.numbers]
        if any(text.tokens == other.tokens for other in earlier):
            verdicts.append(EXACT)
        elif any(jaccard(text, other) >= _THRESHOLD for other in earlier):
            verdicts.append(NEAR)
        else:
            verdicts.append(NEW)
            earlier.append(text)
    return verdicts


def print_verdicts(folder: Path) -> None:
    print("| file | examples | exact | near | near by all pairs | found of those | others found |")
    print("| --- |" + " --- |" * 6)
    for file in TRAINING_FILES:
        texts = [text_of(example) for example in file.examples(folder)]
        found, _ = DuplicateFinder(_THRESHOLD).add(fingerprints(texts))
        expected = exact_verdicts([read_text(text) for text in texts])
        pairs = list(zip(found.tolist(), expected, strict=True))
        num_expected = sum(verdict == NEAR for verdict in expected)
        both = sum(mine != NEW and theirs == NEAR for mine, theirs in pairs)
        others = sum(mine == NEAR and theirs == NEW for mine, theirs in pairs)
        print(
            f"| {file.name} | {len(texts):,} | {(found == EXACT).sum()} | {(found == NEAR).sum()} |"
            f" {num_expected} | {both} | {others} |"
        )


def leave_words_out(text: str, share: float, rng: random.Random) -> str:
    return _WORD.sub(lambda word: "" if rng.random() < share else word[0], text)


def print_copies(folder: Path) -> None:
    rng = random.Random(1)
    found_of: dict[int, list[bool]] = defaultdict(list)
    for file in TRAINING_FILES:
        originals = [text_of(example).lower() for example in file.examples(folder)]
        for share in _LEFT_OUT:
            # Originals that are duplicates of each other would answer for each other's copies.
            finder = DuplicateFinder(_THRESHOLD)
            fresh = finder.add(fingerprints(originals))[0] == NEW
            kept = [text for text, is_fresh in zip(originals, fresh, strict=True) if is_fresh]
            copies = [leave_words_out(text, share, rng) for text in kept]
            verdicts, _ = finder.add(fingerprints(copies))
            for text, copy, verdict in zip(kept, copies, verdicts.tolist(), strict=True):
                original, changed = read_text(text), read_text(copy)
                if original.tokens != changed.tokens:
                    similarity = jaccard(original, changed)
                    found_of[bisect_right(_EDGES, similarity)].append(verdict != NEW)
    print("\n| similarity | copies | found |\n| --- | --- | --- |")
    edges = (0.0, *_EDGES, 1.0)
    for number, found in sorted(found_of.items()):
        share = sum(found) / len(found)
        print(f"| {edges[number]:.2f} to {edges[number + 1]:.2f} | {len(found):,} | {share:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print_verdicts(folder)
    print_copies(folder)


if __name__ == "__main__":
    main()
