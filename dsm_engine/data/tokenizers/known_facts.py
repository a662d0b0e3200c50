"""What the libraries answered about a tokenizer.json, remembered from one start to the next.

Asking them takes longer than all else of a start. There is one small file for each content of a
tokenizer.json under each pair of library versions, in the user's cache folder. Only success is
remembered. A file that is missing, damaged or cannot be written is as if nothing were known.
"""

import functools
import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import orjson
import xxhash

from dsm_engine import __version__
from dsm_engine.errors import DsmError
from dsm_engine.files import user_cache_folder, write_json

_FORMAT = 1
"""Of the facts, of the sample, and of how fastokens is loaded."""
_LIBRARIES = ("tokenizers", "fastokens")


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """Facts of a file that the tokenizers library loads, and that loses and arms nothing."""

    added_tokens: list[dict[str, Any]]
    """As they stand in the file."""
    has_dropout: bool
    """Whether the file, as it stands, samples."""
    marks_beginning: bool
    """Whether a continuation has a pipeline of its own."""
    begins_after_control: bool
    """See `Tokenizer.begins_after_control`."""
    vocab_size: int
    num_tokens: int
    normalizes_controls: bool
    """Whether a control token is looked for in text that has been normalised."""
    unk_id: int | None
    missing_bytes: tuple[int, ...]
    """See `Tokenizer.missing_bytes`."""
    template: list[list[int]]
    """The control ids that the post-processor puts before and after a text."""
    proved: tuple[bool, ...] = ()
    """The values of `continuation` for which fastokens gave the library's ids of the sample."""

    @functools.cached_property
    def controls(self) -> dict[str, int]:
        """The control tokens: names and ids."""
        return {token["content"]: token["id"] for token in self.added_tokens if is_control(token)}

    @functools.cached_property
    def controls_but_unknown(self) -> dict[str, int]:
        """Those without the unknown token, which is what characters without a piece become."""
        return {content: id for content, id in self.controls.items() if id != self.unk_id}

    @functools.cached_property
    def swallowing(self) -> frozenset[str]:
        """The names of the added tokens that swallow the whitespace beside them."""
        return frozenset(
            token["content"]
            for token in self.added_tokens
            if token.get("lstrip") or token.get("rstrip")
        )

    @functools.cached_property
    def unmarked(self) -> list[dict[str, Any]]:
        """The control tokens that the file does not mark special."""
        return [token for token in self.added_tokens if is_unmarked(token)]

    def with_proof(self, *, continuation: bool) -> Self:
        """The same with one more proof of equality."""
        return replace(self, proved=tuple({*self.proved, continuation}))


def is_control(token: dict[str, Any]) -> bool:
    """Whether an added token, as it stands in a tokenizer.json, is a control token."""
    return bool(token.get("special")) or is_unmarked(token)


def is_unmarked(token: dict[str, Any]) -> bool:
    """Whether an added token is written like a control token and not marked as one."""
    content = token["content"]
    return not token.get("special") and (content[:1] + content[-1:]) in ("<>", "[]")


class FactsMemory:
    """The remembered facts of one tokenizer.json, by its bytes."""

    def __init__(self, data: bytes) -> None:
        self._key = _key(data)

    def read(self) -> TokenizerFacts | None:
        """What is known; None where nothing is."""
        try:
            stored = orjson.loads(self._path().read_bytes())
            facts = stored["facts"]
            if (stored["key"], stored["checksum"]) != (self._key, _checksum(facts)):
                return None
            rows = {name: tuple(facts[name]) for name in ("proved", "missing_bytes")}
            return TokenizerFacts(**{**facts, **rows})
        except (OSError, RuntimeError, ValueError, TypeError, KeyError):
            return None

    def write(self, facts: TokenizerFacts) -> None:
        """Remembers, where that can be done."""
        values = asdict(facts)
        with suppress(DsmError, OSError, RuntimeError):
            write_json(
                self._path(), {"key": self._key, "checksum": _checksum(values), "facts": values}
            )

    def _path(self) -> Path:
        """Raises RuntimeError where the user has no home."""
        return user_cache_folder() / "tokenizers" / f"{self._key}.json"


def _key(data: bytes) -> str:
    conditions = [_FORMAT, __version__, os.uname().machine, *map(_version, _LIBRARIES)]
    digest = hashlib.sha256(orjson.dumps(conditions))
    digest.update(data)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _checksum(facts: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(facts))
