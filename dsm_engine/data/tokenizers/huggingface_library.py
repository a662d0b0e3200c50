"""The tokenizers library over one tokenizer.json, its control tokens disarmed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from dsm_engine.data.tokenizers.byte_level import missing_bytes
from dsm_engine.data.tokenizers.flat_ids import NUM_PIECES, refuse_surrogates, sample_texts
from dsm_engine.data.tokenizers.known_facts import TokenizerFacts, is_control
from dsm_engine.errors import DsmError

_LETTERS = ("a", "\ua66e", "\U00012000")  # Cyrillic multiocular o, cuneiform a: in no vocabulary


class HuggingFaceLibrary:
    """Defines the ids of the texts that begin a text and of those that continue one.

    Raises DsmError where the file is no tokenizer.json, turns text into control ids, or drops text.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        """`data` is what stands at `path`."""
        self._path, self._data = path, data
        description = _parse(path, data)
        added_tokens = [dict(token) for token in description.setdefault("added_tokens", [])]
        has_dropout = bool(description["model"].get("dropout"))
        _disarm(description)
        self.beginning = _load(description, path)
        vocab_size = _vocab_size(description)
        marks_beginning = _without_beginning_marks(description)
        self.continuation = _load(description, path) if marks_beginning else self.beginning
        self._check_nothing_vanishes()
        self.facts = TokenizerFacts(
            added_tokens=added_tokens,
            has_dropout=has_dropout,
            marks_beginning=marks_beginning,
            begins_after_control=marks_beginning and self._begins_after_control(added_tokens),
            vocab_size=vocab_size,
            num_tokens=self.beginning.get_vocab_size(with_added_tokens=True),
            unk_id=_unknown_id(description["model"], self.beginning),
            normalizes_controls=_normalizes_controls(description),
            missing_bytes=tuple(sorted(missing_bytes(description))),
            template=self._template(),
        )
        self._check_disarmed()
        self._published: tokenizers.Tokenizer | None = None

    def encode(self, texts: Sequence[str], *, continuation: bool = False) -> list[list[int]]:
        """Raises DsmError where a text holds half a character."""
        tokenizer = self.continuation if continuation else self.beginning
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            refuse_surrogates(self._path, texts)
            raise
        return [encoding.ids for encoding in encodings]

    def encode_with_controls(self, texts: Sequence[str]) -> list[list[int]]:
        """As the file stands: control strings in text become control ids."""
        if self._published is None:
            self._published = tokenizers.Tokenizer.from_buffer(self._data)
            self._published.no_truncation()
            self._published.no_padding()
        encodings = self._published.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        tokenizer = self.continuation if continuation else self.beginning
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    def sample(self) -> list[str]:
        """Texts that try an encoder of the same file."""
        step = max(1, self.facts.vocab_size // NUM_PIECES)
        tokens = [[token] for token in range(0, self.facts.vocab_size, step)]
        pieces = [piece for piece in self.beginning.decode_batch(tokens) if piece]
        return [*sample_texts(pieces), *map(_text_with, self.facts.controls_but_unknown)]

    def _template(self) -> list[list[int]]:
        encoding = self.beginning.encode("a", add_special_tokens=True)
        text = [idx for idx, added in enumerate(encoding.special_tokens_mask) if not added]
        return [encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]]

    def _begins_after_control(self, added_tokens: Sequence[dict[str, Any]]) -> bool:
        """Asks the library, control tokens armed: some pipelines see each stretch of text between
        control tokens as the beginning of a text."""
        names = (
            token["content"]
            for token in added_tokens
            if is_control(token) and not (token.get("lstrip") or token.get("rstrip"))
        )
        control = next(names, None)
        if control is None:
            return False
        self.beginning.encode_special_tokens = False
        found = self.beginning.encode(f"{control}a", add_special_tokens=False).ids
        self.beginning.encode_special_tokens = True
        begun, continued = (self.encode(["a"], continuation=value)[0] for value in (False, True))
        return found[1:] == begun != continued

    def _check_disarmed(self) -> None:
        controls = self.facts.controls_but_unknown
        texts = list(map(_text_with, controls))
        forbidden = set(controls.values())
        for content, ids in zip(controls, self.encode(texts), strict=True):
            if not forbidden.isdisjoint(ids):
                raise DsmError(f"{self._path}: turns {content!r} in plain text into a control id")

    def _check_nothing_vanishes(self) -> None:
        """A model without an unknown token, byte fallback or ByteLevel drops what it lacks."""
        for text, ids in zip(_LETTERS, self.encode(_LETTERS), strict=True):
            if not ids:
                raise DsmError(
                    f"{self._path}: drops characters it does not know ({text!r} becomes no token at"
                    " all): give its model an unk_token or byte_fallback"
                )


def _normalizes_controls(description: dict[str, Any]) -> bool:
    """Of a disarmed tokenizer.json."""
    return description.get("normalizer") is not None and any(
        token.get("special") and token.get("normalized") for token in description["added_tokens"]
    )


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        description = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DsmError(f"{path}: is not JSON: {error}") from error
    if not _is_tokenizer(description):
        raise DsmError(f"{path}: is not a Hugging Face tokenizer.json")
    return description


def _is_tokenizer(description: Any) -> bool:
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        return False
    tokens = description.get("added_tokens", [])
    return isinstance(tokens, list) and all(
        isinstance(token, dict) and {"id", "content"} <= token.keys() for token in tokens
    )


def _disarm(description: dict[str, Any]) -> None:
    """Marks every control token special and drops what cuts, pads or samples."""
    description["truncation"] = description["padding"] = None
    if description["model"].get("dropout"):
        description["model"]["dropout"] = None
    for token in description["added_tokens"]:
        if is_control(token):
            token["special"] = True


def _text_with(content: str) -> str:
    """A text in which a control token's name stands as text, among all kinds of neighbours."""
    return f"{content}a{content}b {content} \n{content}\n"


def _vocab_size(description: dict[str, Any]) -> int:
    """The largest id plus one, of a file the library has loaded."""
    vocab = description["model"]["vocab"]  # Unigram's is a list of pieces and scores
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    return 1 + max([largest, *(token["id"] for token in description["added_tokens"])])


def _load(description: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(orjson.dumps(description))
    except Exception as error:  # the library raises no narrower one
        raise DsmError(f"{path}: is not a Hugging Face tokenizer.json: {error}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_beginning_marks(description: dict[str, Any]) -> bool:
    """Takes what treats the beginning of a text apart out of the pipeline; whether it was there."""
    before = orjson.dumps([description.get(part) for part in ("normalizer", "pre_tokenizer")])
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        description[part] = _stripped(description.get(part))
    after = orjson.dumps([description.get(part) for part in ("normalizer", "pre_tokenizer")])
    return before != after


def _stripped(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    kind = step.get("type")
    if kind == "Prepend" or (kind == "Strip" and step.get("content") == " "):
        return None
    step = dict(step)
    if kind == "Metaspace":
        step["prepend_scheme"] = "never"
        step.pop("add_prefix_space", None)
    elif kind == "ByteLevel":
        step["add_prefix_space"] = False
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in step:
            step[key] = [inner for item in step[key] if (inner := _stripped(item)) is not None]
    return step


def _unknown_id(model: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> int | None:
    if model.get("unk_id") is not None:  # Unigram's; the others name a token
        return model["unk_id"]
    name = model.get("unk_token")
    return None if name is None else tokenizer.token_to_id(name)
