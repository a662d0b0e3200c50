"""Which SentencePiece models the core encodes, and proof at start that it does so as the library.

Covered are BPE models that take text as it is: the identity normaliser, spaces escaped and kept,
with or without a space before the text, bytes for unknown characters, and user-defined symbols.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from dsm_engine._core import SentencePieceBpe
from dsm_engine.errors import DsmError

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BPE = 2
_PIECE_SAMPLES = 512
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

Encode = Callable[[list[str]], list[list[int]]]


def compile_model(content: bytes) -> SentencePieceBpe:
    """The model for the core. Raises DsmError, its text the reason to use the library instead."""
    try:
        from sentencepiece.sentencepiece_model_pb2 import (
            ModelProto,  # pyright: ignore[reportAttributeAccessIssue]
        )
    except Exception as error:  # protobuf is absent, or not of the library's version
        raise DsmError("the protobuf package does not suit the sentencepiece package") from error
    model = ModelProto()
    model.ParseFromString(content)
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    if trainer.model_type != _BPE:
        raise DsmError(f"a {_MODEL_TYPES.get(trainer.model_type, 'new')} model")
    if normalizer.precompiled_charsmap:
        raise DsmError(f"its normaliser is {normalizer.name or 'not the identity'}")
    if normalizer.remove_extra_whitespaces:
        raise DsmError("it removes whitespace")
    if not normalizer.escape_whitespaces:
        raise DsmError("it does not escape whitespace")
    if trainer.treat_whitespace_as_suffix:
        raise DsmError("it treats whitespace as a suffix")
    return SentencePieceBpe(
        [piece.piece for piece in model.pieces],
        scores=np.array([piece.score for piece in model.pieces], np.float32),
        kinds=np.array([piece.type for piece in model.pieces], np.uint8),
        byte_fallback=trainer.byte_fallback,
        dummy_prefix=normalizer.add_dummy_prefix,
    )


def check_equal(
    native: SentencePieceBpe, pieces: Sequence[str], *, beginning: Encode, continuation: Encode
) -> None:
    """Raises DsmError where the native ids of a sample are not those of the library.

    `pieces` are the model's: some of them, joined, are texts that exercise its own merges.
    """
    step = max(1, len(pieces) // _PIECE_SAMPLES)
    sampled = list(pieces[::step])
    samples = [*_PROBES, *sampled, "".join(sampled), " ".join(sampled)]
    for encode, continues in ((beginning, False), (continuation, True)):
        ids, offsets = native.encode_batch(samples, continuation=continues, threads=1)
        expected = encode(samples)
        found = lists_of_ids(ids, offsets)
        if found != expected:
            text = next(t for t, a, b in zip(samples, found, expected, strict=True) if a != b)
            raise DsmError(f"native ids of {text[:40]!r} are not the library's")


def lists_of_ids(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    """The ids of each text as a list."""
    flat, ends = ids.tolist(), offsets.tolist()
    return [flat[begin:end] for begin, end in pairwise(ends)]
