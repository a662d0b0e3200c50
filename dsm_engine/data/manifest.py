"""PREFIX.manifest.json: counts and checksums of a dataset's files, and a checksum of its own.

docs/formats.md has the keys.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import xxhash
from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.recipes import Section, validate_recipe

FORMAT_VERSION = 2
DATA_SUFFIXES = (".bin", ".idx", ".spans", ".attributes")
MANIFEST_SUFFIX = ".manifest.json"
_CHECKSUM = "manifest_xxh3"
_Xxh3 = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class _Part(Section):
    """A part of the manifest: exact types, and room for what its writer adds."""

    model_config = ConfigDict(extra="allow", strict=True)


class _File(_Part):
    bytes: int = Field(ge=0)
    xxh3: _Xxh3
    chunks: list[_Xxh3]


class _Tokenizer(_Part):
    kind: str
    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int


class _Recipe(_Part):
    tokenizer: str
    bos_token: str | None = None
    eos_token: str | None = None


class _Manifest(_Part):
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    supervised_tokens: int = Field(ge=0)
    vocab_size: int = Field(ge=1)
    dtype: Literal["uint16", "int32"]
    chunk_bytes: int = Field(ge=1, le=1 << 30)
    files: dict[str, _File]
    tokenizer: _Tokenizer = Field(default=None)  # type: ignore[assignment]
    recipe: _Recipe = Field(default=None)  # type: ignore[assignment]
    manifest_xxh3: str

    @field_validator("files")
    @classmethod
    def _all_there(cls, value: dict[str, _File], info: ValidationInfo) -> dict[str, _File]:
        if missing := [suffix for suffix in DATA_SUFFIXES if suffix not in value]:
            raise ValueError(f"bytes and xxh3 of {missing[0]} are missing")
        chunk_bytes = info.data.get("chunk_bytes")
        for suffix, file in value.items():
            if chunk_bytes and len(file.chunks) != -(-file.bytes // chunk_bytes):
                raise ValueError(
                    f"{suffix}: expected the xxh3 of each {chunk_bytes} of its {file.bytes} bytes,"
                    f" found {len(file.chunks)}"
                )
        return value


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`, once every key has its type and the checksum holds.

    Raises DsmError, also where there is none.
    """
    if not _stands(path):
        raise DsmError(f"{path}: {_no_dataset(path)}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else manifest
        raise DsmError(
            f"{path}: expected format_version {FORMAT_VERSION}, found {repr(found)[:80]}:"
            " preprocess the sources again"
        )
    validate_recipe(manifest, _Manifest, str(path))
    if not _is_whole(manifest):
        raise DsmError(
            f"{path}: is damaged or was edited, its checksum differs: preprocess the sources again"
        )
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Publishes the manifest with its checksum."""
    write_json(path, sealed(manifest))


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum over the rest of it: XXH3 of its JSON with sorted keys."""
    rest = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    canonical = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
    return {**rest, _CHECKSUM: xxhash.xxh3_64_hexdigest(canonical)}


def _is_whole(manifest: dict[str, Any]) -> bool:
    try:
        return manifest == sealed(manifest)
    except TypeError:  # nested deeper than anything that was written
        return False


def _stands(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it says what is wrong
    return True


def _no_dataset(path: Path) -> str:
    prefix = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX))
    if prefix.suffix in (".bin", ".idx"):
        whole = prefix.with_suffix("")
        return f"no tokenized dataset there: give the prefix without the ending, {whole}"
    return "no tokenized dataset there: dsm preprocess makes one"
