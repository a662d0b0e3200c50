"""The recipe of a tokenized dataset."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from dsm_engine.data.example import Format, Language
from dsm_engine.data.quality.decontamination import DecontaminationRecipe
from dsm_engine.data.tokenized_dataset import PREFIX_HINT, names_files
from dsm_engine.recipes import Section


class SourceRecipe(Section):
    """One file and how to read it."""

    reader: str
    """`examples`, `jsonl`, or the name of a published source, such as `gsm8k`."""
    path: Path
    """JSONL, a JSON list or Parquet; text may be compressed with gzip or Zstandard. Where there is
    no such file, the one of the name with `.gz` or `.zst` behind it is taken."""
    name: str = ""
    """What the examples' source is called; the reader's name where it is empty."""
    limit: PositiveInt | None = Field(default=None, le=1 << 53)
    """Read only this many rows, the first."""
    languages: list[Language] = Field(default_factory=list)
    """Take only examples in these; all where it is empty."""
    formats: list[Format] = Field(default_factory=list)
    """Take only examples of these; all where it is empty."""
    cap: PositiveInt | None = Field(default=None, le=1 << 53)
    """At most this many examples, chosen at random among those that passed the quality steps."""
    epochs: float = Field(default=1.0, gt=0, le=1000)
    """How often each of those stands in the dataset; 1.5 is once, and half of them once more."""
    weight: float | None = Field(default=None, gt=0)
    """The source's share of the mixture, relative to the others'; all sources have one or none.
    A source that has too few examples for its share gives all it has, `epochs` times."""
    decontaminate: Literal["remove", "report", "off"] | None = None
    """What becomes of examples that hold benchmark text. By default the reader decides: `report`
    for the official training splits of the benchmarks' own families, else `remove`."""
    verify: bool = True
    """Run its programs, where the recipe says `verification`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the reader lets one choose."""


class VerificationRecipe(Section):
    """Running the programs of PoT and TIR examples; those that do not do what their example says
    are quarantined."""

    cpu_s: int = Field(default=10, ge=1)
    """Processor seconds of one program; it has six times as many of the clock, so that a busy
    machine rejects none."""
    memory_mib: int = Field(default=512, ge=64)
    """Of one program, its address space."""
    cache: Path | None = None
    """Results by program, for later runs; in the user's cache folder where it is not set."""


class MixtureRecipe(Section):
    """How the sources' examples are chosen and repeated."""

    examples: PositiveInt | None = Field(default=None, le=1 << 53)
    """The size of a mixture by weights; without it, the largest that no source is too small for."""


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
    sources_folder: Path = Path()
    """Where the relative paths of sources and benchmarks begin."""
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

    deduplication: Literal["off", "exact", "near"] = "off"
    """Of examples that say the same, in the same format, the first is kept: after normalisation,
    or also where their wording alone differs a little."""
    decontamination: DecontaminationRecipe | None = None
    """The benchmarks whose text is looked for in the examples."""
    verification: VerificationRecipe | None = None
    """Whether, and how, the programs of examples are run and compared."""
    mixture: MixtureRecipe = Field(default_factory=MixtureRecipe)
    """The size of the whole."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the choice among examples, by caps, epochs and weights."""

    @model_validator(mode="after")
    def _all_have_weights(self) -> Self:
        weights = [source.weight for source in self.sources]
        if None in weights and any(weight is not None for weight in weights):
            raise ValueError("sources: give every source a weight, or none")
        if self.mixture.examples is not None and None in weights:
            raise ValueError("mixture.examples: needs a weight for every source")
        return self

    @field_validator("output")
    @classmethod
    def _names_files(cls, value: Path) -> Path:
        if not names_files(value):
            raise ValueError(PREFIX_HINT)
        return value
