"""What a preprocessing run is of: everything its output depends on, checked before it begins."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_engine import __version__
from dsm_engine.data.preparation.blocks import BLOCK_BYTES, SourceFile
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
from dsm_engine.files import file_xxh3

_PARTS_VERSION = 1
_DECIDED_LATER = ("on_error", "mixture", "seed", "cap", "epochs", "weight")


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
        sources.append(_source_file(recipe, source, path, reader, num_bytes))
    benchmarks, contamination = _open_benchmarks(recipe)
    return OpenRecipe(
        recipe=recipe,
        sources=sources,
        template=template,
        tokenizer=tokenizer,
        benchmarks=benchmarks,
        contamination=contamination,
    )


def make_plan(opened: OpenRecipe) -> dict[str, Any]:
    """All that the parts depend on, as JSON; what stands of it in the manifest, too."""
    tokenizer, template = opened.tokenizer, opened.template
    return {
        "parts": {"engine": __version__, "version": _PARTS_VERSION, "block_bytes": BLOCK_BYTES},
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "encoder": tokenizer.encoder,
        },
        "template": {"name": template.name, "fingerprint": template.fingerprint},
        "inputs": [
            {
                "path": str(source.path),
                "size": source.num_bytes,
                "xxh3": file_xxh3(source.path),
            }
            for source in opened.sources
        ],
        "benchmarks": [
            {"name": benchmark.name, "path": str(benchmark.path), "xxh3": file_xxh3(benchmark.path)}
            for benchmark in opened.benchmarks
        ],
        "recipe": opened.recipe.model_dump(mode="json"),
    }


def parts_key(plan: dict[str, Any]) -> dict[str, Any]:
    """What of a plan the parts depend on: not what is decided once they stand, so that another
    policy or mixture, chosen after an error, does not cost the work again."""
    recipe = {key: value for key, value in plan["recipe"].items() if key not in _DECIDED_LATER}
    if recipe["verification"]:
        recipe["verification"] = {**recipe["verification"], "cache": None}
    recipe["overlong"] = recipe["overlong"] == "truncate"
    recipe["sources"] = [_source_key(source) for source in recipe["sources"]]
    return {**plan, "recipe": recipe}


def _source_key(source: dict[str, Any]) -> dict[str, Any]:
    key = {name: value for name, value in source.items() if name not in _DECIDED_LATER}
    return {**key, "decontaminate": source["decontaminate"] == "off"}


def sources_of_plan(plan: dict[str, Any]) -> tuple[PreprocessRecipe, list[SourceFile]]:
    """The recipe of a plan and its sources, whose files need not be here."""
    recipe = PreprocessRecipe.model_validate(plan["recipe"])
    sources = [
        _source_file(
            recipe,
            source,
            Path(given["path"]),
            _reader(source, f"sources.{idx}"),
            given["size"],
        )
        for idx, (source, given) in enumerate(zip(recipe.sources, plan["inputs"], strict=True))
    ]
    return recipe, sources


def check_unchanged(opened: OpenRecipe) -> None:
    """Raises DsmError where a source has another size than it had at the beginning."""
    for source in opened.sources:
        if source.path.stat().st_size != source.num_bytes:
            raise DsmError(f"{source.path}: changed while it was read; run the command again")


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
    recipe: PreprocessRecipe, source: SourceRecipe, path: Path, reader: Reader, num_bytes: int
) -> SourceFile:
    return SourceFile(
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
