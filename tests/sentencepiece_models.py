"""SentencePiece models of every shape the core covers, and texts that try them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

SYMBOLS = ["\n", "```", "\\boxed{", "User:\u2581", "\u2581\u2581\u2581\u2581", "中文", "中", "aa"]
CONTROLS = ["<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<0x0A>"]
SHAPES = {
    f"{'bytes' if byte_fallback else 'unknown'}"
    f"{'_prefix' if dummy_prefix else ''}{'_symbols' if symbols else ''}": {
        "byte_fallback": byte_fallback,
        "add_dummy_prefix": dummy_prefix,
        "user_defined_symbols": SYMBOLS if symbols else [],
    }
    for byte_fallback in (False, True)
    for dummy_prefix in (False, True)
    for symbols in (False, True)
}
"""Names of the shapes, and how the trainer is told."""

_SENTENCES = [
    "User: Tom has 12 apples and buys 3 more.\nThink.\n\nAssistant: 12 + 3 = 15",
    "小明有3个苹果，又买了4个。思考一下：中文的文字没有空格，中文中中文。",
    "```python\nprint(3 + 4)\n    return aaa + aaaa\n```\nThe answer is \\boxed{7}.",
    "Two  spaces,    four spaces, <s> and </s> and <unk>; é è ê ☺ \U0001f600 \U0001f600",
    "the then there other mother them thesis theatre, anthem, breathe; aab abab babaab",
]


def train_model(path: Path, **settings: Any) -> Path:
    """A BPE model with the identity normaliser, unless the settings say otherwise."""
    defaults = {
        "model_type": "bpe",
        "vocab_size": 520 if settings.get("byte_fallback") else 260,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "pad_id": 3,
        "minloglevel": 2,
    }
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(_SENTENCES * 4), model_writer=file, **{**defaults, **settings}
        )
    return path


def random_text(draw: random.Random) -> str:
    """A text of pieces, control strings, runs of spaces, and characters from all of Unicode."""
    parts = []
    for _ in range(draw.randrange(12)):
        kind = draw.randrange(8)
        if kind < 3:
            sentence = draw.choice(_SENTENCES)
            begin = draw.randrange(len(sentence))
            parts.append(sentence[begin : begin + draw.randrange(20)])
        elif kind == 3:
            parts.append(draw.choice([*CONTROLS, *SYMBOLS, "\u2581", "\0", "\ufffd", "\u200d"]))
        elif kind == 4:
            parts.append(draw.choice(" a中\n☃") * draw.randrange(9))
        else:
            parts.extend(_random_characters(draw))
    return "".join(parts)


def _random_characters(draw: random.Random) -> Iterator[str]:
    planes = [(0, 0x80), (0x80, 0x800), (0x4E00, 0xA000), (0x800, 0xD800), (0xE000, 0x110000)]
    begin, end = draw.choice(planes)
    for _ in range(draw.randrange(10)):
        yield chr(draw.randrange(begin, end))
