"""SentencePiece models."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import sentencepiece

from dsm_engine.data.chat_template_files import copy_chat_template
from dsm_engine.data.tokenizers.flat_ids import (
    FlatIds,
    check_equal,
    flat_ids,
    lists_of_ids,
    refuse_surrogates,
    sample_texts,
)
from dsm_engine.data.tokenizers.sentencepiece_native import compile_model
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, file_xxh3

_SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
_MAX_TEXT_BYTES = 1 << 24
_NUM_CONTROL = 4  # <unk>, <s>, </s>, <pad>
_NUM_BYTES = 256


class SentencePieceTokenizer:
    """A SentencePiece model. Neither encoder turns text into a control id.

    The core encodes the models it covers, after it gave the library's ids for a sample; the
    library encodes the others, and decodes them all. User-defined symbols are matched in any text:
    that is what they are for.
    """

    kind = "sentencepiece"
    begins_after_control = False
    missing_bytes: frozenset[int] = frozenset()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fingerprint = file_xxh3(path)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.Load(str(path))
        except (OSError, RuntimeError) as error:
            raise DsmError(f"{path}: is not a SentencePiece model") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.eos_id: int = self._model.eos_id()
        if self.eos_id < 0:
            raise DsmError(f"{path}: the model has no EOS; training needs one")
        self.unk_id: int | None = self._model.unk_id() if self._model.unk_id() >= 0 else None
        tokens = list(range(self.vocab_size))
        self._pieces: list[str] = self._model.IdToPiece(tokens)
        self._control_ids = set(compress(tokens, self._model.IsControl(tokens)))
        self.controls = {self._pieces[token]: token for token in sorted(self._control_ids)}
        self._sentinel, self._sentinel_ids = "", []
        if self._changes_beginnings():
            self._sentinel, self._sentinel_ids = self._find_sentinel()
        self.encoder_reason: str | None = None
        try:
            self._native = compile_model(path.read_bytes())
            self._check_native()
        except DsmError as reason:
            self._native, self.encoder_reason = None, str(reason)

    @property
    def encoder(self) -> str:
        return "library" if self._native is None else "native"

    def control_id(self, name: str) -> int | None:
        return self.controls.get(name)

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        return self.encode_batch([text], continuation=continuation)[0]

    def encode_batch(self, texts: Sequence[str], *, continuation: bool = False) -> list[list[int]]:
        if self._native is None:
            return self._encode_by_library(texts, continuation=continuation)
        return lists_of_ids(*self.encode_flat(texts, continuation=continuation))

    def encode_flat(
        self, texts: Sequence[str], *, continuation: bool = False, threads: int = 1
    ) -> FlatIds:
        """See `Tokenizer.encode_flat`; the library takes no heed of `threads`."""
        if self._native is None:
            return flat_ids(self._encode_by_library(texts, continuation=continuation))
        try:
            return self._native.encode_batch(texts, continuation=continuation, threads=threads)
        except UnicodeEncodeError:
            refuse_surrogates(self.path, texts)
            raise

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        shown = [token for token in ids if token not in self._control_ids]
        if not continuation or not self._sentinel:
            return self._model.Decode(shown)
        return self._model.Decode(self._sentinel_ids + shown).removeprefix(self._sentinel)

    def save(self, folder: Path) -> None:
        with atomic_file(folder / "tokenizer.model") as file:
            file.write(self.path.read_bytes())
        copy_chat_template(self.path.parent, folder)

    def _encode_by_library(
        self, texts: Sequence[str], *, continuation: bool = False
    ) -> list[list[int]]:
        try:
            return self._encode_continuations(texts) if continuation else self._encode(texts)
        except (RuntimeError, TypeError):
            refuse_surrogates(self.path, texts)
            raise

    def _encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        num_sentinel = len(self._sentinel_ids)
        encoded = self._encode([self._sentinel + text for text in texts])
        for text, ids in zip(texts, encoded, strict=True):
            if ids[:num_sentinel] != self._sentinel_ids:
                raise DsmError(f"{self.path}: cannot encode {text[:40]!r} as a continuation")
        return [ids[num_sentinel:] for ids in encoded]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.Encode(list(texts)) if texts else []

    def _check_native(self) -> None:
        assert self._native is not None
        pieces = [
            piece for token, piece in enumerate(self._pieces) if token not in self._control_ids
        ]
        samples = sample_texts(pieces)
        for continuation in (False, True):
            check_equal(
                "native",
                samples,
                found=self._native.encode_batch(samples, continuation=continuation, threads=1),
                expected=self._encode_by_library(samples, continuation=continuation),
            )

    def _changes_beginnings(self) -> bool:
        """Whether a text's first characters are encoded otherwise than in the middle of one."""
        pieces: Any = self._model.EncodeAsPieces("a")
        trims = self._model.Encode(" a") == self._model.Encode("a")
        return pieces[0].startswith(_SPACE) or trims

    def _find_sentinel(self) -> tuple[str, list[int]]:
        """A character no piece joins to its successor, so that its ids can be cut off again."""
        for candidate in self._sentinel_candidates():
            ids = self._model.Encode(candidate)
            probes = ("a", " a", "\n", "1", "中", "<0x41>")
            cut = [self._model.Encode(candidate + probe)[: len(ids)] for probe in probes]
            decodes = self._model.Decode(ids) == candidate
            if decodes and all(found == ids for found in cut):
                return candidate, ids
        raise DsmError(f"{self.path}: has no character to encode continuations behind")

    def _sentinel_candidates(self) -> Iterator[str]:
        occurrences = Counter("".join(self._pieces))
        if any(self._model.IsByte(list(range(self.vocab_size)))):
            yield from (c for c in map(chr, range(1, 9)) if c not in occurrences)
        for token in reversed(range(self.vocab_size)):
            piece = self._pieces[token]
            plain = not (self._model.IsControl(token) or self._model.IsUnknown(token))
            if plain and len(piece) == 1 and piece != _SPACE and occurrences[piece] == 1:
                yield piece


def train(texts: Iterable[str], *, path: Path, vocab_size: int, symbols: Sequence[str]) -> None:
    """See `dsm_engine.data.tokenizers.train_sentencepiece`."""
    sentences = list(texts)
    if not any(sentences):
        raise DsmError(f"{path}: no text to train a tokenizer on")
    longest = max(len(sentence.encode()) for sentence in sentences)
    if longest > _MAX_TEXT_BYTES:
        raise DsmError(f"{path}: a text of {longest} bytes is too long to train a tokenizer on")
    num_characters = len(set("".join(sentences)))
    num_fixed = _NUM_CONTROL + _NUM_BYTES + len(symbols) + num_characters
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=num_fixed <= vocab_size // 2,
            character_coverage=1.0,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in symbols],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=_MAX_TEXT_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DsmError(
            f"{path}: no SentencePiece model of {vocab_size} pieces from {len(sentences)} texts "
            f"with {num_characters} characters and {len(symbols)} symbols: {reason}"
        ) from error
    with atomic_file(path) as file:
        file.write(model.getvalue())
