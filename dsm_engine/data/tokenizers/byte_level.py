"""Which bytes of text a byte-level model has no token for: the tokenizers library drops them."""

from typing import Any

import orjson

_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
_VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def missing_bytes(description: dict[str, Any]) -> frozenset[int]:
    """The bytes of UTF-8 that vanish from text, of a tokenizer.json; empty for most.

    Only byte-level BPE without an unknown token drops some bytes and keeps the others.
    """
    model = description["model"]
    pipeline = [description.get(part) for part in ("normalizer", "pre_tokenizer")]
    if model.get("type", "BPE") != "BPE" or model.get("unk_token") is not None:
        return frozenset()
    if b'"ByteLevel"' not in orjson.dumps(pipeline):
        return frozenset()
    vocab = model["vocab"]
    return frozenset(
        byte
        for byte, character in enumerate(_alphabet())
        if byte not in _NEVER_IN_UTF8
        and character not in vocab
        and not (model.get("byte_fallback") and _fallback(character) <= vocab.keys())
    )


def _alphabet() -> list[str]:
    """The character that GPT-2 and all after it write for each byte: itself where it is visible,
    and for the n-th other one U+0100 + n."""
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in _VISIBLE else chr(next(others)) for byte in range(0x100)]


def _fallback(character: str) -> set[str]:
    return {f"<0x{byte:02X}>" for byte in character.encode()}
