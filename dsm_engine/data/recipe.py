"""The recipe of a tokenized dataset."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from dsm_engine.data.tokenized_dataset import PREFIX_HINT, names_files
from dsm_engine.recipes import Section


class SourceRecipe(Section):
    """One file and how to read it."""

    reader: str
    """`examples`, `jsonl`, or the name of a published source, such as `gsm8k`."""
    path: Path
    """JSONL, a JSON list or Parquet; text may be compressed with gzip or Zstandard."""
    name: str = ""
    """What the examples' source is called; the reader's name where it is empty."""
    limit: PositiveInt | None = None
    """Read only this many rows."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the reader lets one choose."""


class PreprocessRecipe(Section):
    """From sources to a tokenized dataset."""

    output: Path
    """The prefix of its files."""
    tokenizer: Path
    """A tokenizer.model or tokenizer.json, or a folder that holds one."""
    bos_token: str | None = None
    """Of a tokenizer.json that does not say which it is."""
    eos_token: str | None = None
    """Of a tokenizer.json that does not say which it is."""
    template: str = "deepseekmath"
    """A template of the package by name (`deepseekmath`, `chat`), the path of a YAML file or of a
    chat template (.jinja), or `tokenizer` for the chat template beside the tokenizer."""
    sources: list[SourceRecipe] = Field(min_length=1)
    max_tokens: int = Field(default=4096, ge=2)
    """The longest document, BOS and EOS counted."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What becomes of longer ones. A truncated document ends without EOS."""
    on_error: Literal["error", "skip", "quarantine"] = "error"
    """What becomes of bad rows; quarantine writes them, and overlong ones that are dropped, to
    PREFIX.quarantine.jsonl with reasons."""
    on_unknown: Literal["count", "error"] = "count"
    """What becomes of characters the tokenizer has no token for: they are its unknown token, and
    the ledger counts those (`unknown_tokens`); or the first one ends the run."""

    @field_validator("output")
    @classmethod
    def _names_files(cls, value: Path) -> Path:
        if not names_files(value):
            raise ValueError(PREFIX_HINT)
        return value
