"""Hugging Face tokenizer.json files."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from dsm_engine.data.chat_template_files import copy_chat_template
from dsm_engine.data.tokenizers.early_load import EarlyLoad, load_fastokens
from dsm_engine.data.tokenizers.flat_ids import (
    FlatIds,
    check_equal,
    flat_ids,
    lists_of_ids,
    refuse_surrogates,
    texts_holding,
    with_replaced,
)
from dsm_engine.data.tokenizers.huggingface_fast import FastEncoder
from dsm_engine.data.tokenizers.known_facts import FactsMemory
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, read_bytes, read_json, write_json
from dsm_engine.nearest import nearest

if TYPE_CHECKING:
    from dsm_engine.data.tokenizers.huggingface_library import HuggingFaceLibrary

_CONFIG = "tokenizer_config.json"
_BOS_NAMES = ("<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]")
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
    such as runs of spaces, are ordinary vocabulary. With `bulk`, the library is loaded only where
    something is asked of it that is not remembered (see `known_facts`).
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
        self._data = read_bytes(path)
        self.fingerprint = xxhash.xxh3_64_hexdigest(self._data)
        self._memory = FactsMemory(self._data) if bulk else None
        remembered = self._memory.read() if self._memory else None
        self._facts = remembered or self._library.facts
        self.controls = self._facts.controls
        self.vocab_size = self._facts.vocab_size
        self.num_tokens = self._facts.num_tokens
        """Tokens there are; fewer than `vocab_size` where ids are left out."""
        self.unk_id = self._facts.unk_id
        self.missing_bytes = frozenset(self._facts.missing_bytes)
        self.begins_after_control = self._facts.begins_after_control
        self.normalizes_controls = self._facts.normalizes_controls
        """Whether text that is no control string can be one once it is normalised."""
        self.control_strings = list(self.controls)
        """What stays text in text, the name of the unknown token included."""
        config_path = path.with_name(_CONFIG)
        config = read_json(config_path) if config_path.is_file() else {}
        self._config = config if isinstance(config, dict) else {}
        names = {token["content"]: token["id"] for token in self._facts.added_tokens}
        _check_added_tokens(path, self._config, names)
        self.bos_id = _control_id(path, "bos", bos, config, _BOS_NAMES, names)
        eos_id = _control_id(path, "eos", eos, config, _EOS_NAMES, names)
        if eos_id is None:
            raise DsmError(f"{path}: no EOS token is known; name it (one of: {', '.join(names)})")
        self.eos_id = eos_id
        self._control_names = {id: content for content, id in names.items()}
        self._bulk = bulk
        self._early = None if self._facts.has_dropout else early
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
        if name in self._facts.swallowing:
            raise DsmError(
                f"{self.path}: the control token {name!r} swallows the whitespace beside it (lstrip"
                " or rstrip), which is not done here: use a template without it"
            )
        return self.controls.get(name)

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        return self._library.encode([text], continuation=continuation)[0]

    def encode_batch(self, texts: Sequence[str], *, continuation: bool = False) -> list[list[int]]:
        if self._bulk:
            return lists_of_ids(*self.encode_flat(texts, continuation=continuation))
        return self._library.encode(texts, continuation=continuation)

    def encode_flat(
        self, texts: Sequence[str], *, continuation: bool = False, threads: int = 1
    ) -> FlatIds:
        """See `Tokenizer.encode_flat`. The first call waits until fastokens has loaded the file."""
        fast = self._fast_encoder(continuation=continuation)
        if fast is None:
            return flat_ids(self._library.encode(texts, continuation=continuation))
        return self._encode_by_fastokens(fast, texts, continuation=continuation, threads=threads)

    def template(self) -> tuple[list[int], list[int]]:
        """The control ids that the file's post-processor puts before and after a text."""
        before, after = self._facts.template
        return before, after

    def configured_template(self) -> tuple[list[int], list[int]] | None:
        """The same as tokenizer_config.json has it; transformers up to version 4 hears it."""
        if not {"add_bos_token", "add_eos_token"} & self._config.keys():
            return None
        bos = self.bos_id if self._config.get("add_bos_token") else None
        eos = self.eos_id if self._config.get("add_eos_token") else None
        return [] if bos is None else [bos], [] if eos is None else [eos]

    def encode_with_controls(self, texts: Sequence[str]) -> list[list[int]]:
        """As the file stands: control strings in text become control ids."""
        return self._library.encode_with_controls(texts)

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        return self._library.decode(ids, continuation=continuation)

    def save(self, folder: Path) -> None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        config["bos_token"] = None if self.bos_id is None else self._control_names[self.bos_id]
        config["eos_token"] = self._control_names[self.eos_id]
        with atomic_file(folder / "tokenizer.json") as file:
            file.write(self._data)
        write_json(folder / _CONFIG, config)
        copy_chat_template(self.path.parent, folder)

    @functools.cached_property
    def _library(self) -> "HuggingFaceLibrary":
        from dsm_engine.data.tokenizers.huggingface_library import HuggingFaceLibrary

        return HuggingFaceLibrary(self.path, self._data)

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
            return flat_ids(self._library.encode(texts, continuation=continuation))
        kept = list(texts)
        for text_idx in lossy:
            kept[text_idx] = ""
        flat = self._encode_by_fastokens(fast, kept, continuation=continuation, threads=threads)
        lost = [texts[text_idx] for text_idx in lossy]
        return with_replaced(flat, lossy, self._library.encode(lost, continuation=continuation))

    def _fast_encoder(self, *, continuation: bool) -> FastEncoder | None:
        """fastokens, where it gives the library's ids for a sample; loaded when first asked for."""
        continuation = continuation and self._facts.marks_beginning
        if continuation not in self._fast:
            try:
                fast = self._load_proved(continuation=continuation)
            except DsmError as reason:
                fast, self._reasons[continuation] = None, str(reason)
            self._fast[continuation] = fast
        return self._fast[continuation]

    def _load_proved(self, *, continuation: bool) -> FastEncoder:
        if continuation in self._facts.proved:
            return self._load_fast(continuation=continuation)
        samples = self._library.sample()
        # The library's ids first: an early load goes on meanwhile.
        expected = self._library.encode(samples, continuation=continuation)
        fast = self._load_fast(continuation=continuation)
        found = self._encode_by_fastokens(fast, samples, continuation=continuation)
        check_equal("fastokens", samples, found=found, expected=expected)
        self._facts = self._facts.with_proof(continuation=continuation)
        if self._memory is not None:
            self._memory.write(self._facts)
        return fast

    def _load_fast(self, *, continuation: bool) -> FastEncoder:
        """Always in the same way for the same file: a proof holds for that way alone."""
        if self._early is not None and not continuation:
            loaded, self._early = self._early.result(), None
            if loaded is None:
                text = self._data.decode()
                loaded = load_fastokens(lambda kind: kind.from_json_str(text))
            fast = FastEncoder(loaded)
            fast.mark_special(self._facts.unmarked)
            return fast
        library = self._library.continuation if continuation else self._library.beginning
        return FastEncoder(load_fastokens(lambda kind: kind.from_json_str(library.to_str())))


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
