"""Which SentencePiece models the core encodes.

Covered are BPE models that take text as it is: the identity normaliser, spaces escaped and kept,
with or without a space before the text, bytes for unknown characters, and user-defined symbols.
"""

import numpy as np

from dsm_engine._core import SentencePieceBpe
from dsm_engine.errors import DsmError

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BPE = 2


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
    rows = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    pieces, scores, kinds = zip(*rows, strict=True) if rows else ((), (), ())
    return SentencePieceBpe(
        list(pieces),
        scores=np.array(scores, np.float32),
        kinds=np.array(kinds, np.uint8),
        byte_fallback=trainer.byte_fallback,
        dummy_prefix=normalizer.add_dummy_prefix,
    )
