"""The quality steps as the pipeline calls them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.example import Example
from dsm_engine.data.preparation.prepare import Look, Verifier
from dsm_engine.data.preparation.resolve import Duplicates
from dsm_engine.data.quality.decontamination import ContaminationIndex
from dsm_engine.data.quality.deduplication import (
    EXACT,
    NEW,
    DuplicateFinder,
    Fingerprints,
    duplicate_text,
    fingerprints,
)
from dsm_engine.data.recipe import PreprocessRecipe, VerificationRecipe
from dsm_engine.sandbox import Sandbox


def look_for_benchmarks(index: ContaminationIndex | None) -> Look | None:
    """What tells which benchmark item each example holds, if any."""
    if index is None:
        return None

    def look(examples: Sequence[Example]) -> dict[str, NDArray[Any]]:
        answers = ["\n".join(block.text for block in example.blocks) for example in examples]
        hits = index.find([example.question for example in examples], answers)
        return {"benchmark": hits.benchmark, "benchmark_item": hits.item}

    return look


def take_fingerprints(recipe: PreprocessRecipe) -> Look | None:
    """What tells by what examples are compared, as far as the recipe asks for it."""
    if recipe.deduplication == "off":
        return None

    def take(examples: Sequence[Example]) -> dict[str, NDArray[Any]]:
        found = fingerprints([duplicate_text(example) for example in examples])
        if recipe.deduplication == "exact":
            return {"exact": found.exact}
        return {"exact": found.exact, "numbers": found.numbers, "signature": found.signature}

    return take


def open_duplicates(recipe: PreprocessRecipe) -> Duplicates | None:
    """What knows the documents that were kept, by those fingerprints."""
    if recipe.deduplication == "off":
        return None
    return _Exact() if recipe.deduplication == "exact" else _Near()


class _Exact:
    """Holds eight bytes a document: sorted runs, none smaller than what follows it."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, extra: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
        exact = extra["exact"]
        verdicts = np.full(len(exact), EXACT, np.uint8)
        distinct, first = np.unique(exact, return_index=True)
        new = np.ones(len(distinct), np.bool_)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            new &= run[places] != distinct
        verdicts[first[new]] = NEW
        self._keep(distinct[new])
        return verdicts

    def _keep(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)


class _Near:
    def __init__(self) -> None:
        self._finder = DuplicateFinder()

    def add(self, extra: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
        return self._finder.add(
            Fingerprints(
                exact=extra["exact"], numbers=extra["numbers"], signature=extra["signature"]
            )
        )[0]


@dataclass(frozen=True, slots=True)
class Verification:
    """How programs are run here, if at all."""

    make: Callable[[], Verifier] | None = None
    """Makes a verifier, in each process one."""
    conditions: str = ""
    """All that results depend on besides the programs."""


def open_verification(recipe: VerificationRecipe | None, *, unsafe_exec: bool) -> Verification:
    """Raises DsmError where programs are to be run and cannot be run here."""
    if recipe is None:
        return Verification()
    from dsm_engine.data.quality.program_cache import ProgramCache, default_cache_path
    from dsm_engine.data.quality.program_verification import ProgramVerifier, verification_sandbox

    cache_path = recipe.cache or default_cache_path()

    def open_sandbox() -> Sandbox:
        return verification_sandbox(
            cpu_s=recipe.cpu_s, memory_mib=recipe.memory_mib, unsafe=unsafe_exec
        )

    with open_sandbox() as sandbox:
        conditions = sandbox.conditions
    ProgramCache(cache_path).close()
    return Verification(
        make=lambda: ProgramVerifier(open_sandbox(), ProgramCache(cache_path)),
        conditions=conditions,
    )
