"""The fastokens library: the ids of the tokenizers library for byte-level BPE, many times faster.

Its own worker threads are off (see `early_load`); the threads here are ours.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np

from dsm_engine.data.tokenizers.flat_ids import FlatIds

_PART_CHARACTERS = 1 << 18
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class FastEncoder:
    """A fastokens tokenizer, which never turns text into a control id.

    Texts encode alike from any thread and in forked processes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._threads: tuple[int, int, ThreadPoolExecutor] | None = None

    def mark_special(self, tokens: Sequence[dict[str, Any]]) -> None:
        """Makes control tokens of added tokens, as they stand in tokenizer.json."""
        self._tokenizer.add_tokens([_added_token(token) for token in tokens])

    def encode_flat(self, texts: Sequence[str], *, threads: int = 1) -> FlatIds:
        """The ids of all texts. Raises UnicodeEncodeError where one holds half a character."""
        parts = _parts(texts)
        if threads == 1 or len(parts) == 1:
            encoded = [self._encode(part) for part in parts]
        else:
            encoded = list(self._executor(threads).map(self._encode, parts))
        if len(encoded) == 1:
            return encoded[0]
        lengths = [np.diff(offsets) for _, offsets in encoded]
        ends = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.concatenate(lengths), out=ends[1:])
        return np.concatenate([ids for ids, _ in encoded]), ends

    def _encode(self, texts: list[str]) -> FlatIds:
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)

    def _executor(self, threads: int) -> ThreadPoolExecutor:
        """Kept, since its threads have the library's warm caches; a forked process has its own."""
        process = os.getpid()
        if self._threads is None or self._threads[:2] != (process, threads):
            self._threads = (process, threads, ThreadPoolExecutor(threads))
        return self._threads[2]


def _added_token(token: dict[str, Any]) -> SimpleNamespace:
    flags = {name: bool(token.get(name)) for name in _FLAGS}
    return SimpleNamespace(content=token["content"], special=True, **flags)


def _parts(texts: Sequence[str]) -> list[list[str]]:
    """The texts in order, in parts that a thread's cache holds; one part where there are none."""
    parts: list[list[str]] = [[]]
    num_characters = 0
    for text in texts:
        if num_characters >= _PART_CHARACTERS:
            parts.append([])
            num_characters = 0
        parts[-1].append(text)
        num_characters += len(text)
    return parts
