"""The tokenizers of Megatron-LM's preprocess_data: what its flags name, and the ids it gives.

As Megatron-Core's tokenizers do it: SentencePiece models encode the text alone, under each of their
three names; Hugging Face tokenizers add what `AutoTokenizer(text).input_ids` adds.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsm_engine.data.indexed_dataset import optimal_dtype
from dsm_engine.data.tokenizers.early_load import EarlyLoad
from dsm_engine.data.tokenizers.flat_ids import FlatIds, flat_ids, texts_holding, with_replaced
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest

_SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
_HUGGING_FACE = "HuggingFaceTokenizer"
TOKENIZER_TYPES = (*_SENTENCEPIECE, _HUGGING_FACE)
OTHER_TYPES = (
    "BertWordPieceLowerCase",
    "BertWordPieceCase",
    "GPT2BPETokenizer",
    "TikTokenizer",
    "MultimodalTokenizer",
    "SFTTokenizer",
    "NullTokenizer",
    "NullMultimodalTokenizer",
)
"""Those of Megatron that are not here."""


class MegatronTokenizer(Protocol):
    """Texts to the ids Megatron's `tokenize` gives."""

    eod: int
    """What --append-eod appends."""
    dtype: np.dtype[Any]
    """Of the .bin, by Megatron's rule."""
    prefix: list[int]
    """What stands before the ids of every text."""
    suffix: list[int]
    """What stands after them."""
    note: str | None
    """What the user should know of them."""

    @property
    def encoder(self) -> str:
        """What encodes, and why it is not a faster one."""
        ...

    def find_controls(self, texts: Sequence[str]) -> list[int]:
        """Which texts hold control strings, where those could become control ids."""
        ...

    def count_losses(self, texts: Sequence[str]) -> int:
        """How many texts hold characters that the model drops."""
        ...

    def encode(self, texts: Sequence[str], holding: Sequence[int], *, threads: int) -> FlatIds:
        """The ids of all texts, without prefix and suffix. `holding` is what `find_controls` gave.

        May be called on another thread.
        """
        ...


def load_megatron_tokenizer(
    kind: str,
    model: Path,
    *,
    special_tokens: bool = True,
    parse_controls: bool = False,
    early: EarlyLoad | None = None,
) -> MegatronTokenizer:
    """The tokenizer that `--tokenizer-type` and `--tokenizer-model` name.

    Args:
        kind: One of TOKENIZER_TYPES.
        model: A SentencePiece model, or a folder with a tokenizer.json, or that file.
        special_tokens: Whether a Hugging Face tokenizer adds its BOS and the like.
        parse_controls: Whether a control string in text becomes its control id, as it does there.
        early: A load of that file into fastokens that goes on already.

    Raises DsmError.
    """
    if kind in _SENTENCEPIECE:
        return _SentencePiece(model)
    if kind == _HUGGING_FACE:
        return _HuggingFace(_json_file(model), special_tokens, parse_controls, early)
    if kind in OTHER_TYPES:
        raise DsmError(
            f"--tokenizer-type {kind} is not supported; these are: {', '.join(TOKENIZER_TYPES)}"
        )
    raise DsmError(f"--tokenizer-type {kind} is unknown {nearest(kind, TOKENIZER_TYPES)}")


def _json_file(model: Path) -> Path:
    return model / "tokenizer.json" if model.is_dir() else model


class _SentencePiece:
    def __init__(self, model: Path) -> None:
        from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

        if model.is_dir():
            model = model / "tokenizer.model"
        self._tokenizer = SentencePieceTokenizer(model)
        self.eod = self._tokenizer.eos_id
        self.dtype = optimal_dtype(self._tokenizer.vocab_size)
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        self.note: str | None = None

    @property
    def encoder(self) -> str:
        return _encoder_line(self._tokenizer)

    def find_controls(self, texts: Sequence[str]) -> list[int]:
        return []  # the model has no way to make control ids of text

    def count_losses(self, texts: Sequence[str]) -> int:
        return 0

    def encode(self, texts: Sequence[str], holding: Sequence[int], *, threads: int) -> FlatIds:
        return self._tokenizer.encode_flat(texts, threads=threads)


class _HuggingFace:
    def __init__(
        self, model: Path, special_tokens: bool, parse_controls: bool, early: EarlyLoad | None
    ) -> None:
        from dsm_engine.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

        self._tokenizer = HuggingFaceTokenizer(model, bulk=True, early=early)
        self.eod = self._tokenizer.eos_id
        self.dtype = optimal_dtype(self._tokenizer.num_tokens)
        if self._tokenizer.vocab_size - 1 > np.iinfo(self.dtype).max:
            raise DsmError(
                f"{model}: has ids up to {self._tokenizer.vocab_size - 1}, and so few tokens that"
                f" Megatron writes {self.dtype}"
            )
        self.prefix, self.suffix = self._tokenizer.template() if special_tokens else ([], [])
        self.note = self._note() if special_tokens else None
        self._controls = _ControlStrings(self._tokenizer.control_strings)
        self._parse_controls = parse_controls

    @property
    def encoder(self) -> str:
        return _encoder_line(self._tokenizer)

    def _note(self) -> str | None:
        configured = self._tokenizer.configured_template()
        if configured is None or configured == (self.prefix, self.suffix):
            return None
        return (
            f"tokenizer_config.json asks for {configured[0]} before and {configured[1]} after every"
            f" text; transformers 4 does that for some classes, transformers 5 does not: it goes by"
            f" tokenizer.json ({self.prefix} and {self.suffix}), and so do these files"
        )

    def find_controls(self, texts: Sequence[str]) -> list[int]:
        return self._controls.find(texts)

    def count_losses(self, texts: Sequence[str]) -> int:
        return len(texts_holding(texts, self._tokenizer.missing_bytes))

    def encode(self, texts: Sequence[str], holding: Sequence[int], *, threads: int) -> FlatIds:
        if self._parse_controls and self._tokenizer.normalizes_controls:
            return flat_ids(self._tokenizer.encode_with_controls(texts))
        flat = self._tokenizer.encode_flat(texts, threads=threads)
        if self._parse_controls and holding:
            parsed = self._tokenizer.encode_with_controls([texts[idx] for idx in holding])
            flat = with_replaced(flat, holding, parsed)
        return flat


class _ControlStrings:
    """Finds the texts that hold one of many strings; most texts hold none."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = list(strings)
        self._first_characters = sorted({string[:1] for string in self._strings})
        self._beginnings = sorted({string[:2] for string in self._strings})

    def find(self, texts: Sequence[str]) -> list[int]:
        """Which texts do, in order. One character is looked for fastest, and is rare already."""
        candidates: set[int] = set()
        for character in self._first_characters:
            candidates.update([idx for idx, text in enumerate(texts) if character in text])
        return [idx for idx in sorted(candidates) if self._holds_one(texts[idx])]

    def _holds_one(self, text: str) -> bool:
        has_beginning = any(beginning in text for beginning in self._beginnings)
        return has_beginning and self._pattern.search(text) is not None

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._strings)))


def _encoder_line(tokenizer: Any) -> str:
    reason = tokenizer.encoder_reason
    return tokenizer.encoder if reason is None else f"{tokenizer.encoder} ({reason})"
