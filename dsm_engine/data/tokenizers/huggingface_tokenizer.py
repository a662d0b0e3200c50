"""Hugging Face tokenizer.json files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from dsm_engine.data.chat_template_files import copy_chat_template
from dsm_engine.data.tokenizers.byte_level import missing_bytes
from dsm_engine.data.tokenizers.early_load import EarlyLoad, load_fastokens
from dsm_engine.data.tokenizers.flat_ids import (
    NUM_PIECES,
    FlatIds,
    check_equal,
    flat_ids,
    lists_of_ids,
    refuse_surrogates,
    sample_texts,
    texts_holding,
    with_replaced,
)
from dsm_engine.data.tokenizers.huggingface_fast import FastEncoder
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, file_xxh3, read_json, write_json
from dsm_engine.nearest import nearest

_CONFIG = "tokenizer_config.json"
_BOS_NAMES = ("<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]")
_RARE_LETTERS = ("\ua66e", "\U00012000")  # Cyrillic multiocular o, cuneiform a: in no vocabulary
_EOS_NAMES = (
    "<｜end▁of▁sentence｜>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|im_end|>",
    "[EOS]",
)


class HuggingFaceTokenizer:
    """A tokenizer.json, through the tokenizers library, with its control tokens disarmed.

    Control tokens are the added tokens that are marked special, and those that are not but are
    written like one (`<...>` or `[...]`, as chat models' role markers are). Other added tokens,
    such as runs of spaces, are ordinary vocabulary.
    """

    kind = "huggingface"

    def __init__(
        self,
        path: Path,
        *,
        bos: str | None = None,
        eos: str | None = None,
        bulk: bool = False,
        early: EarlyLoad | None = None,
    ) -> None:
        """See `load_tokenizer`. `early` is a load of the same file that goes on already."""
        self.path = path
        if bulk and early is None:
            early = EarlyLoad(path)
        self.fingerprint = file_xxh3(path)
        config_path = path.with_name(_CONFIG)
        has_config = config_path.is_file()
        description = read_json(path)
        if not _is_tokenizer(description):
            raise DsmError(f"{path}: is not a Hugging Face tokenizer.json")
        if description["model"].get("dropout"):
            early = None  # what was loaded samples
        self.controls, unmarked = _disarm(description)
        controls = dict(self.controls)
        self.normalizes_controls = _normalizes_controls(description)
        """Whether text that is no control string can be one once it is normalised."""
        self._swallowing = {
            token["content"]
            for token in description["added_tokens"]
            if token.get("lstrip") or token.get("rstrip")
        }
        self._beginning = _load(description, path)
        self.vocab_size = _vocab_size(description)
        self.missing_bytes = missing_bytes(description)
        changed = _without_beginning_marks(description)
        self._continuation = _load(description, path) if changed else self._beginning
        self.begins_after_control = changed and self._begins_after_control()
        config = read_json(config_path) if has_config else {}
        self._config = config if isinstance(config, dict) else {}
        names = {token["content"]: token["id"] for token in description["added_tokens"]}
        _check_added_tokens(path, self._config, names)
        self.bos_id = _control_id(path, "bos", bos, config, _BOS_NAMES, names)
        eos_id = _control_id(path, "eos", eos, config, _EOS_NAMES, names)
        if eos_id is None:
            raise DsmError(f"{path}: no EOS token is known; name it (one of: {', '.join(names)})")
        self.eos_id = eos_id
        self._control_names = {id: content for content, id in names.items()}
        self.unk_id = _unknown_id(description["model"], self._beginning)
        self.control_strings = list(controls)
        """What stays text in text, the name of the unknown token included."""
        # The unknown token is what characters without a piece become: no control.
        controls = {content: id for content, id in controls.items() if id != self.unk_id}
        self._controls = controls
        self._check_disarmed()
        self._check_nothing_vanishes()
        self._bulk = bulk
        self._published: tokenizers.Tokenizer | None = None
        self._early, self._unmarked = early, unmarked
        self._fast: dict[bool, FastEncoder | None] = {}
        self._reasons: dict[bool, str] = {}

    @property
    def encoder(self) -> str:
        return "library" if self._fast_encoder(continuation=False) is None else "fastokens"

    @property
    def encoder_reason(self) -> str | None:
        self._fast_encoder(continuation=False)
        return self._reasons.get(False)

    def control_id(self, name: str) -> int | None:
        if name in self._swallowing:
            raise DsmError(
                f"{self.path}: the control token {name!r} swallows the whitespace beside it (lstrip"
                " or rstrip), which is not done here: use a template without it"
            )
        return self.controls.get(name)

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        return self._encode_by_library([text], continuation=continuation)[0]

    def encode_batch(self, texts: Sequence[str], *, continuation: bool = False) -> list[list[int]]:
        if self._bulk:
            return lists_of_ids(*self.encode_flat(texts, continuation=continuation))
        return self._encode_by_library(texts, continuation=continuation)

    def encode_flat(
        self, texts: Sequence[str], *, continuation: bool = False, threads: int = 1
    ) -> FlatIds:
        """See `Tokenizer.encode_flat`. The first call waits until fastokens has loaded the file."""
        fast = self._fast_encoder(continuation=continuation)
        if fast is None:
            return flat_ids(self._encode_by_library(texts, continuation=continuation))
        return self._encode_by_fastokens(fast, texts, continuation=continuation, threads=threads)

    @property
    def num_tokens(self) -> int:
        """Tokens there are; fewer than `vocab_size` where ids are left out."""
        return self._beginning.get_vocab_size(with_added_tokens=True)

    def template(self) -> tuple[list[int], list[int]]:
        """The control ids that the file's post-processor puts before and after a text."""
        encoding = self._beginning.encode("a", add_special_tokens=True)
        text = [idx for idx, added in enumerate(encoding.special_tokens_mask) if not added]
        return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]

    def configured_template(self) -> tuple[list[int], list[int]] | None:
        """The same as tokenizer_config.json has it; transformers up to version 4 hears it."""
        if not {"add_bos_token", "add_eos_token"} & self._config.keys():
            return None
        bos = self.bos_id if self._config.get("add_bos_token") else None
        eos = self.eos_id if self._config.get("add_eos_token") else None
        return [] if bos is None else [bos], [] if eos is None else [eos]

    def encode_with_controls(self, texts: Sequence[str]) -> list[list[int]]:
        """As the file stands: control strings in text become control ids."""
        if self._published is None:
            self._published = tokenizers.Tokenizer.from_file(str(self.path))
            self._published.no_truncation()
            self._published.no_padding()
        encodings = self._published.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        tokenizer = self._continuation if continuation else self._beginning
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        config["bos_token"] = None if self.bos_id is None else self._control_names[self.bos_id]
        config["eos_token"] = self._control_names[self.eos_id]
        with atomic_file(folder / "tokenizer.json") as file:
            file.write(self.path.read_bytes())
        write_json(folder / _CONFIG, config)
        copy_chat_template(self.path.parent, folder)

    def _begins_after_control(self) -> bool:
        """Asks the library, control tokens armed: some pipelines see each stretch of text between
        control tokens as the beginning of a text."""
        control = next((name for name in self.controls if name not in self._swallowing), None)
        if control is None:
            return False
        self._beginning.encode_special_tokens = False
        found = self._beginning.encode(f"{control}a", add_special_tokens=False).ids
        self._beginning.encode_special_tokens = True
        return found[1:] == self.encode("a") != self.encode("a", continuation=True)

    def _encode_by_library(
        self, texts: Sequence[str], *, continuation: bool = False
    ) -> list[list[int]]:
        tokenizer = self._continuation if continuation else self._beginning
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            refuse_surrogates(self.path, texts)
            raise
        return [encoding.ids for encoding in encodings]

    def _encode_by_fastokens(
        self, fast: FastEncoder, texts: Sequence[str], *, continuation: bool, threads: int = 1
    ) -> FlatIds:
        """The library encodes texts with bytes the model lacks: fastokens refuses those."""
        try:
            return fast.encode_flat(texts, threads=threads)
        except UnicodeEncodeError:
            refuse_surrogates(self.path, texts)
            raise
        except ValueError:
            lossy = texts_holding(texts, self.missing_bytes)
        if not lossy:  # the normaliser makes them
            return flat_ids(self._encode_by_library(texts, continuation=continuation))
        kept = list(texts)
        for text_idx in lossy:
            kept[text_idx] = ""
        flat = self._encode_by_fastokens(fast, kept, continuation=continuation, threads=threads)
        lost = [texts[text_idx] for text_idx in lossy]
        return with_replaced(flat, lossy, self._encode_by_library(lost, continuation=continuation))

    def _fast_encoder(self, *, continuation: bool) -> FastEncoder | None:
        """fastokens, where it gives the library's ids for a sample; loaded when first asked for."""
        continuation = continuation and self._continuation is not self._beginning
        if continuation not in self._fast:
            try:
                fast = self._load_checked(continuation=continuation)
            except DsmError as reason:
                fast, self._reasons[continuation] = None, str(reason)
            self._fast[continuation] = fast
        return self._fast[continuation]

    def _load_fast(self, *, continuation: bool) -> FastEncoder:
        if self._early is not None and not continuation:
            loaded, self._early = self._early.result(), None
            if loaded is not None:
                fast = FastEncoder(loaded)
                fast.mark_special(self._unmarked)
                return fast
        library = self._continuation if continuation else self._beginning
        return FastEncoder(load_fastokens(lambda kind: kind.from_json_str(library.to_str())))

    def _load_checked(self, *, continuation: bool) -> FastEncoder:
        step = max(1, self.vocab_size // NUM_PIECES)
        tokens = [[token] for token in range(0, self.vocab_size, step)]
        pieces = [piece for piece in self._beginning.decode_batch(tokens) if piece]
        samples = [*sample_texts(pieces), *map(_text_with, self._controls)]
        # The library's ids first: an early load goes on meanwhile.
        expected = self._encode_by_library(samples, continuation=continuation)
        fast = self._load_fast(continuation=continuation)
        found = self._encode_by_fastokens(fast, samples, continuation=continuation)
        check_equal("fastokens", samples, found=found, expected=expected)
        return fast

    def _check_disarmed(self) -> None:
        texts = list(map(_text_with, self._controls))
        forbidden = set(self._controls.values())
        for content, ids in zip(self._controls, self._encode_by_library(texts), strict=True):
            if not forbidden.isdisjoint(ids):
                raise DsmError(f"{self.path}: turns {content!r} in plain text into a control id")

    def _check_nothing_vanishes(self) -> None:
        """A model without an unknown token, byte fallback or ByteLevel drops what it lacks."""
        for text in _RARE_LETTERS:
            if not self.encode(text):
                raise DsmError(
                    f"{self.path}: drops characters it does not know ({text!r} becomes no token at"
                    " all): give its model an unk_token or byte_fallback"
                )


def _is_tokenizer(description: Any) -> bool:
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        return False
    tokens = description.get("added_tokens", [])
    return isinstance(tokens, list) and all(
        isinstance(token, dict) and {"id", "content"} <= token.keys() for token in tokens
    )


def _disarm(description: dict[str, Any]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Marks every control token special and drops what cuts, pads or samples.

    Gives the control tokens, names to ids, and those added tokens that were not marked before.
    """
    description["truncation"] = description["padding"] = None
    if description["model"].get("dropout"):
        description["model"]["dropout"] = None
    controls, unmarked = {}, []
    for token in description.setdefault("added_tokens", []):
        content = token["content"]
        if token.get("special") or (content[:1] + content[-1:]) in ("<>", "[]"):
            if not token.get("special"):
                unmarked.append(token)
            token["special"] = True
            controls[content] = token["id"]
    return controls, unmarked


def _normalizes_controls(description: dict[str, Any]) -> bool:
    """Of a disarmed tokenizer.json."""
    return description.get("normalizer") is not None and any(
        token.get("special") and token.get("normalized") for token in description["added_tokens"]
    )


def _check_added_tokens(path: Path, config: dict[str, Any], names: Mapping[str, int]) -> None:
    """transformers adds the tokens that tokenizer_config.json has besides; ids would differ."""
    entries = config.get("added_tokens_decoder")
    for token, entry in entries.items() if isinstance(entries, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if content not in names:
            raise DsmError(
                f"{path}: added_tokens_decoder of {_CONFIG} has {content!r} (id {token}), which is"
                " no added token of this file, so transformers gives other ids: load the tokenizer"
                " there and save it again"
            )


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


def _control_id(
    path: Path,
    role: str,
    explicit: str | None,
    config: Any,
    known: Sequence[str],
    names: dict[str, int],
) -> int | None:
    key = f"{role}_token"
    if explicit is not None:
        if explicit not in names:
            raise DsmError(
                f"{path}: no token {explicit!r} for {key} {nearest(explicit, list(names))}"
            )
        return names[explicit]
    if isinstance(config, dict) and key in config:
        value = config[key]
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            return None
        if content not in names:
            raise DsmError(f"{path}: {_CONFIG} names {content!r} as {key}; it is not there")
        return names[content]
    return next((names[name] for name in known if name in names), None)
