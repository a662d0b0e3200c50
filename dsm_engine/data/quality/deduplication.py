"""Exact and near duplicates among examples.

Texts are compared by their tokens (csrc/core/text_tokens.h): words and LaTeX commands, numbers, and
single characters of all other kinds, Chinese ones among them. What does not count: Unicode
compatibility forms and case (`normalization`), white space and LaTeX's commands for it, `$` and
the other delimiters of formulas, `\\left` and `\\right`, `\\dfrac` for `\\frac`, separators of
thousands. So two programs that differ in indentation alone are the same.

- Exact: the same tokens in the same order, by a 64-bit hash.
- Near: shingles of 5 tokens whose Jaccard similarity is at least the threshold, estimated by
  MinHash (Broder, On the resemblance and containment of documents, 1997) with 128 permutations, 8
  bits kept of each (Li and König, b-Bit minwise hashing, 2010). Candidates come from locality-
  sensitive hashing in 16 bands of 8 rows (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets,
  chapter 3): at similarity s one is missed with probability (1 - s^8)^16, 1 in 8,000 at 0.9. And
  the numbers of the two texts, in order, must be the same: a template with other numbers is
  another problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsm_engine import _core
from dsm_engine.data.example import Example
from dsm_engine.data.quality.normalization import normalized, whole_characters

NEW, EXACT, NEAR = 0, 1, 2
"""The verdicts of a DuplicateFinder."""

_MARK = "\x1f"  # the core counts it and the word behind it among the numbers


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What of n texts is compared."""

    exact: NDArray[np.uint64]
    """[n]"""
    numbers: NDArray[np.uint64]
    """[n]; of a text's numbers in order"""
    signature: NDArray[np.uint8]
    """[n, 128]; the share of equal bytes estimates the Jaccard similarity"""

    def __len__(self) -> int:
        return len(self.exact)


def duplicate_text(example: Example) -> str:
    """What two examples are compared by: question and whole answer, language and format.

    Examples whose format, language or kinds of blocks differ are never duplicates of each other.
    """
    parts = [f"{_MARK}{example.format}{_MARK}{example.language}", example.question]
    for block in example.blocks:
        parts += (f"{_MARK}{block.kind}", block.text)
    return "\n".join(parts)


def fingerprints(texts: Sequence[str], *, threads: int = 1) -> Fingerprints:
    """The fingerprints of texts, each of its text alone. Raises DsmError for half a character."""
    with whole_characters():
        return Fingerprints(*_core.fingerprint_texts(normalized(texts), threads=threads))


class DuplicateFinder:
    """Decides about documents in their order: the first of its duplicates is kept.

    A document is compared with those kept before it alone, so verdicts do not depend on how the
    stream is cut into calls. Memory: 417 to 727 bytes a kept document at the peak.
    """

    def __init__(self, threshold: float = 0.9) -> None:
        """Raises DsmError unless 0 < threshold <= 1."""
        self._finder = _core.DuplicateFinder(threshold)

    def add(self, fingerprints: Fingerprints) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The next n documents: verdicts [n], NEW, EXACT or NEAR, and of what they are duplicates.

        The latter [n] are numbers of documents, from 0 in the order of all that were added, the
        earliest there is; -1 for new ones.
        """
        return self._finder.add(fingerprints.exact, fingerprints.numbers, fingerprints.signature)
