"""How texts are compared, in plain Python: what the core must agree with."""

import re
import unicodedata
from collections.abc import Sequence

_DASHES = dict.fromkeys([*map(chr, range(0x2010, 0x2016)), "\u2212"], "-")
_FOLDED = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', **_DASHES})
_TOKEN = re.compile(
    r"(?P<mark>\x1f[a-z]*)"
    r"|\\(?P<command>[a-z]+)"
    r"|\\[,;:!()\[\]\\ \n]"
    r"|(?P<number>[0-9]+(?:(?:\{,\}|,\\!|,)[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?)"
    r"|(?P<ideograph>[\u4e00-\u9fff])"
    r"|(?P<mathematical>[-+*/=<>^%|×÷±])"
    r"|(?P<word>[a-zà-öø-ÿα-ω]+)"
    r"|(?P<punctuation>[^\s$~\\\0-\x20])"
)
_INSIGNIFICANT = {"quad", "qquad", "left", "right", "displaystyle"}
_PROSE_MARKS = ".,;:?!\"'()[]{}`*。、《》"


def normalized(text: str) -> str:
    text = re.sub("[²³¹⁰-ⁿ]+", r"^\g<0>", text)
    text = re.sub("[₀-ₜ]+", r"_\g<0>", text)
    return unicodedata.normalize("NFKC", text).casefold().translate(_FOLDED)


def tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of every token."""
    found = []
    for match in _TOKEN.finditer(normalized(text)):
        kind, value = match.lastgroup, match[match.lastgroup] if match.lastgroup else ""
        if kind is None or (kind == "command" and value in _INSIGNIFICANT):
            continue
        if kind == "command":
            value = "\\frac" if value in ("dfrac", "tfrac") else "\\" + value
        if kind == "number":
            value = re.sub(r"[^0-9.]", "", value)
        found.append((kind, value))
    return found


def numbers(text: str) -> list[str]:
    return [value for kind, value in tokens(text) if kind in ("number", "mark")]


def words(text: str) -> list[str]:
    """English words of a text whose formulas have no spaces."""
    found = []
    for word in normalized(text).replace("$", "").split():
        if stripped := word.strip(_PROSE_MARKS):
            found.append(stripped)
    return found


def chinese_words(text: str) -> list[str]:
    return [value for kind, value in tokens(text) if kind not in ("punctuation", "mark")]


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    values = [value for _, value in tokens(text)]
    if not values:
        return set()
    return {tuple(values[i : i + size]) for i in range(max(1, len(values) - size + 1))}


def jaccard(a: str, b: str) -> float:
    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second)


def contains_run(words: Sequence[str], run: Sequence[str]) -> bool:
    return any(list(words[i : i + len(run)]) == list(run) for i in range(len(words) - len(run) + 1))


def is_contaminated(
    benchmark: Sequence[str],
    question: Sequence[str],
    answer: Sequence[str],
    *,
    ngram: int,
    shortest: int,
) -> bool:
    """By the words of one benchmark text and of a training example."""
    if not benchmark:
        return False
    if list(benchmark) == list(question):
        return True
    if len(benchmark) < shortest:
        return False
    size = min(len(benchmark), ngram)
    runs = [benchmark[i : i + size] for i in range(len(benchmark) - size + 1)]
    return any(contains_run(text, run) for run in runs for text in (question, answer))
