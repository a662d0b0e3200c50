"""Ids of many texts in one row, and what every encoder shares: its sample, its refusals."""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsm_engine.errors import DsmError

FlatIds = tuple[NDArray[np.int32], NDArray[np.int64]]
"""The ids of all texts in a row, [total]; where those of each begin, and the last end, [n + 1]."""

NUM_PIECES = 512
"""How many of a model's pieces a sample has, about."""
_PROBES = (
    "",
    " ",
    "\n",
    "\0",
    "User: Tom has 12 apples; he buys 3 more.\n\nAssistant: 12 + 3 = \\boxed{15}",
    "  two  spaces,\ttab\r\n   and trailing   ",
    "\u2581literal marks\u2581 and \u2581 spaces",
    "小明有3个苹果，又买了4个。\n\n思考：$$\\frac{1}{2}$$",
    "```python\nprint(3 + 4)\n```\n```output\n7\n```\n",
    "<s></s><unk><pad><0x41> </s> <s>a</s>b",
    "e\u0301 ÅÅ ﬁ ① \u200d\ufeff\ufffd \U0001f468\u200d\U0001f469\u200d\U0001f467 नमस्ते مرحبا",
    "☃☃ ☃\U0010ffff\U0001f600\U0001f600a☃",
    "a" * 300 + "0123456789" * 30,
)


def sample_texts(pieces: Sequence[str]) -> list[str]:
    """Texts that try an encoder: probes, and some of a model's own pieces, alone and joined.

    Joined, they exercise the model's own merges.
    """
    step = max(1, len(pieces) // NUM_PIECES)
    sampled = list(pieces[::step])
    return [*_PROBES, *sampled, "".join(sampled), " ".join(sampled)]


def check_equal(
    name: str, samples: Sequence[str], *, found: FlatIds, expected: list[list[int]]
) -> None:
    """Raises DsmError where the ids of a sample by the encoder `name` are not the library's."""
    for text, ids, library_ids in zip(samples, lists_of_ids(*found), expected, strict=True):
        if ids != library_ids:
            raise DsmError(f"{name} ids of {text[:40]!r} are not the library's")


def lists_of_ids(ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> list[list[int]]:
    """The ids of each text as a list."""
    flat, ends = ids.tolist(), offsets.tolist()
    return [flat[begin:end] for begin, end in pairwise(ends)]


def flat_ids(encoded: Sequence[Sequence[int]]) -> FlatIds:
    """The reverse of `lists_of_ids`."""
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.fromiter(chain.from_iterable(encoded), np.int32, count=int(ends[-1])), ends


def with_replaced(flat: FlatIds, where: Sequence[int], by: Sequence[Sequence[int]]) -> FlatIds:
    """`flat` with other ids for some of its texts, in order."""
    ids, offsets = flat
    parts = np.split(ids, offsets[1:-1])
    for text_idx, replacement in zip(where, by, strict=True):
        parts[text_idx] = np.array(replacement, np.int32)
    ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return np.concatenate(parts), ends


def texts_holding(texts: Sequence[str], some_bytes: Iterable[int]) -> list[int]:
    """Which texts hold one of the bytes in UTF-8, in order."""
    searched = bytes(some_bytes)
    if not searched or not _holds("".join(texts), searched):
        return []
    return [text_idx for text_idx, text in enumerate(texts) if _holds(text, searched)]


def _holds(text: str, searched: bytes) -> bool:
    content = text.encode(errors="surrogatepass")
    return len(content.translate(None, searched)) < len(content)


def refuse_surrogates(path: Path, texts: Sequence[str]) -> None:
    """Raises DsmError where one of the texts is none: half a character stands in it."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = text[max(0, error.start - 20) : error.end]
            raise DsmError(f"{path}: cannot encode {place!r}: it holds a lone surrogate") from error
