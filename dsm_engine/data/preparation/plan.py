"""What a preprocessing run is of: everything its output depends on, checked before it begins."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from dsm_engine import __version__
from dsm_engine.data.preparation.blocks import SourceFile, cutting_rules, file_signature
from dsm_engine.data.quality.decontamination import (
    BenchmarkRecipe,
    ContaminationIndex,
    load_benchmarks,
)
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.data.sources.held_out import refuse_benchmark
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.templates import Template, load_template
from dsm_engine.data.tokenizers import Tokenizer, load_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import file_xxh3, read_json

_PARTS_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRecipe:
    """A recipe with everything it names opened and checked."""

    recipe: PreprocessRecipe
    sources: Sequence[SourceFile]
    template: Template
    tokenizer: Tokenizer
    benchmarks: Sequence[BenchmarkRecipe]
    """With the paths of their files."""
    contamination: ContaminationIndex | None


def open_recipe(recipe: PreprocessRecipe) -> OpenRecipe:
    """Raises DsmError for the first thing that is missing, wrong, or a benchmark."""
    tokenizer = load_tokenizer(
        recipe.tokenizer, bos=recipe.bos_token, eos=recipe.eos_token, bulk=True
    )
    template = load_template(recipe.template, tokenizer)
    sources = []
    for source_idx, source in enumerate(recipe.sources):
        where = f"sources.{source_idx}"
        reader = _reader(source, where)
        path = find_file(recipe.sources_folder / source.path)
        num_bytes = _checked_size(path, where)
        refuse_benchmark(reader, path, where)
        sources.append(
            _source_file(recipe, source, path, reader, num_bytes, signature=file_signature(path))
        )
    benchmarks, contamination = _open_benchmarks(recipe)
    return OpenRecipe(
        recipe=recipe,
        sources=sources,
        template=template,
        tokenizer=tokenizer,
        benchmarks=benchmarks,
        contamination=contamination,
    )


@dataclass(frozen=True)
class Plan:
    """All that a dataset depends on, as JSON."""

    values: dict[str, Any]

    @property
    def recipe(self) -> PreprocessRecipe:
        return PreprocessRecipe.model_validate(self.values["recipe"])

    @property
    def benchmarks(self) -> list[str]:
        return [benchmark["name"] for benchmark in self.values["benchmarks"]]

    @property
    def manifest(self) -> dict[str, Any]:
        """What of it stands in the manifest."""
        return {key: value for key, value in self.values.items() if key != "parts"}

    @property
    def parts_key(self) -> str:
        """A hash of what parts depend on: contents rather than paths, and nothing that is decided
        once they stand, so that another policy or mixture does not cost the work again."""
        values, recipe = self.values, self.values["recipe"]
        verified = recipe["verification"] is not None
        kept = {name: recipe[name] for name in RECIPE_OF_PARTS}
        kept["overlong"] = recipe["overlong"] == "truncate"
        if recipe["decontamination"]:
            kept["benchmarks"] = [
                {**benchmark, "path": None} for benchmark in recipe["decontamination"]["benchmarks"]
            ]
            kept["ngrams"] = [recipe["decontamination"][n] for n in ("ngram", "chinese_ngram")]
        if verified:
            kept["limits"] = [recipe["verification"][name] for name in ("cpu_s", "memory_mib")]
        kept["sources"] = [
            {
                **{name: source[name] for name in SOURCE_OF_PARTS},
                "decontaminate": source["decontaminate"] == "off",
                "verify": verified and source["verify"],
            }
            for source in recipe["sources"]
        ]
        contents = [[item["xxh3"] for item in values[key]] for key in ("inputs", "benchmarks")]
        key = [values["parts"], values["tokenizer"], values["template"], contents, kept]
        return xxhash.xxh3_128_hexdigest(orjson.dumps(key, option=orjson.OPT_SORT_KEYS))

    def sources(self) -> list[SourceFile]:
        """Its sources, whose files need not be here."""
        recipe = self.recipe
        return [
            _source_file(
                recipe,
                source,
                Path(given["path"]),
                _reader(source, f"sources.{idx}"),
                given["size"],
            )
            for idx, (source, given) in enumerate(
                zip(recipe.sources, self.values["inputs"], strict=True)
            )
        ]


RECIPE_OF_PARTS = ("max_tokens", "deduplication")
"""The keys of a recipe that its parts depend on as they stand."""
SOURCE_OF_PARTS = ("reader", "name", "limit", "options", "languages", "formats")
"""Those of a source."""


def make_plan(opened: OpenRecipe, *, conditions: str) -> Plan:
    """The plan of a recipe; `conditions` are those that programs are run under."""
    tokenizer, template = opened.tokenizer, opened.template
    return Plan(
        {
            "parts": {
                "engine": __version__,
                "version": _PARTS_VERSION,
                "cut": cutting_rules(),
                "programs": conditions,
            },
            "tokenizer": {
                "kind": tokenizer.kind,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eos_id": tokenizer.eos_id,
            },
            "template": {"name": template.name, "fingerprint": template.fingerprint},
            "inputs": [
                {"path": str(source.path), "size": source.num_bytes, "xxh3": source.xxh3}
                for source in opened.sources
            ],
            "benchmarks": [
                {
                    "name": benchmark.name,
                    "path": str(benchmark.path),
                    "xxh3": file_xxh3(benchmark.path),
                }
                for benchmark in opened.benchmarks
            ],
            "recipe": opened.recipe.model_dump(mode="json"),
        }
    )


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises DsmError where it is none."""
    try:
        plan = Plan(read_json(path))
        plan.sources()
        _ = plan.parts_key, plan.benchmarks, plan.values["tokenizer"]["vocab_size"] + 0
    except (DsmError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DsmError(
            f"{path}: is damaged or of another version ({reason:.200}); remove {path.parent}"
        ) from error
    return plan


def _reader(source: SourceRecipe, where: str) -> Reader:
    return make_reader(source.reader, source=source.name, options=source.options, where=where)


def _open_benchmarks(
    recipe: PreprocessRecipe,
) -> tuple[list[BenchmarkRecipe], ContaminationIndex | None]:
    if recipe.decontamination is None:
        return [], None
    benchmarks = []
    for idx, benchmark in enumerate(recipe.decontamination.benchmarks):
        path = find_file(recipe.sources_folder / benchmark.path)
        _checked_size(path, f"decontamination.benchmarks.{idx}")
        benchmarks.append(benchmark.model_copy(update={"path": path}))
    return benchmarks, load_benchmarks(
        benchmarks,
        ngram=recipe.decontamination.ngram,
        chinese_ngram=recipe.decontamination.chinese_ngram,
    )


def _source_file(
    recipe: PreprocessRecipe,
    source: SourceRecipe,
    path: Path,
    reader: Reader,
    num_bytes: int,
    signature: tuple[int, ...] = (),
) -> SourceFile:
    return SourceFile(
        signature=signature,
        xxh3=file_xxh3(path) if signature else "",
        path=path,
        reader=reader,
        num_bytes=num_bytes,
        limit=source.limit,
        verified=recipe.verification is not None and source.verify,
    )


def find_file(path: Path) -> Path:
    """The path, or the compressed file beside it where there is no file of that very name."""
    if path.name and not os.path.lexists(path):
        for suffix in (".gz", ".zst"):
            compressed = path.with_name(path.name + suffix)
            if os.path.lexists(compressed):
                return compressed
    return path


def _checked_size(path: Path, where: str) -> int:
    """The file's bytes, at least one. Raises DsmError where it is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DsmError(f"{path}: no such file ({where})") from error
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error} ({where})") from error
    if stat.S_ISDIR(status.st_mode):
        raise DsmError(f"{path}: is a folder; a source is one file ({where})")
    if not stat.S_ISREG(status.st_mode):
        raise DsmError(f"{path}: is no regular file; a source is read twice ({where})")
    if status.st_size == 0:
        raise DsmError(f"{path}: is empty ({where})")
    return status.st_size
