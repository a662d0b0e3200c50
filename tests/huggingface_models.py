"""Small tokenizer.json files of every kind of pipeline, and control strings in texts."""

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.sentencepiece_models import random_text

SENTENCES = [
    "User: Tom has 12 apples and buys 3 more.\nThink.\n\nAssistant: 12 + 3 = 15",
    "小明有3个苹果，又买了4个。思考一下：中文的文字没有空格，中文中中文。",
    "```python\nprint(3 + 4)\n    return aaa + aaaa\n```\nThe answer is \\boxed{7}.",
    "the then there other mother them thesis theatre, anthem, breathe; it's aab abab 1234567",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
UNMARKED = ["<|user|>", "[INST]", "    "]
CONTROL_STRINGS = [*SPECIAL[1:], *UNMARKED[:2]]

_GPT2 = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BYTES = {"decoder": decoders.ByteLevel()}
PIPELINES: dict[str, dict[str, Any]] = {
    "byte_level": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False), **_BYTES},
    "byte_level_prefix": {
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True),
        **_BYTES,
    },
    "split_and_bytes": {
        "normalizer": normalizers.NFC(),
        "pre_tokenizer": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Split(tokenizers.Regex(_GPT2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        **_BYTES,
    },
    "metaspace": {
        "pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always"),
        "decoder": decoders.Metaspace(prepend_scheme="always"),
    },
    "prepend": {
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        ),
        "decoder": decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    },
    "whitespace": {"pre_tokenizer": pre_tokenizers.Whitespace()},
}
"""Pipelines of BPE models, by name."""


def bpe(path: Path, pipeline: str) -> Path:
    """Writes a BPE model with one of the pipelines."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if "byte" in pipeline else [],
        show_progress=False,
    )
    return _train(path, models.BPE(unk_token="<unk>"), trainer, PIPELINES[pipeline])


def unigram(path: Path) -> Path:
    """Writes a Unigram model. Its control tokens are no pieces: it would find those in text."""
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    return _train(path, models.Unigram(), trainer, PIPELINES["metaspace"])


def word_piece(path: Path) -> Path:
    """Writes a WordPiece model."""
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    model = models.WordPiece(unk_token="<unk>")  # pyright: ignore[reportCallIssue]
    return _train(path, model, trainer, PIPELINES["whitespace"])


def without_bytes(path: Path, missing: bytes) -> Path:
    """Writes a byte-level BPE model that drops some bytes: it has no token for them."""
    model = json.loads(bpe(path, "byte_level").read_text())
    model["model"]["unk_token"] = None
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lost = {shown.pre_tokenize_str(chr(byte))[0][0] for byte in missing}
    vocab, merges = model["model"]["vocab"], model["model"]["merges"]
    model["model"]["vocab"] = {
        f"unused {token}" if lost & set(piece) and piece not in SPECIAL else piece: token
        for piece, token in vocab.items()
    }
    model["model"]["merges"] = [pair for pair in merges if not lost & set("".join(pair))]
    path.write_text(json.dumps(model, ensure_ascii=False))
    return path


def text_with_controls(draw: random.Random) -> str:
    """A random text with control strings in it now and then."""
    parts = []
    for _ in range(draw.randrange(4)):
        parts += [random_text(draw), draw.choice([*CONTROL_STRINGS, *UNMARKED, "", " ", "\r\n"])]
    return "".join(parts)


def _train(path: Path, model: Any, trainer: Any, parts: dict[str, Any]) -> Path:
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    for content in UNMARKED:
        tokenizer.add_tokens([tokenizers.AddedToken(content, normalized=False)])
    tokenizer.save(str(path))
    return path
