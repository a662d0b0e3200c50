"""Row by row, in the order of the sources: what is kept, and why the rest is not."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from dsm_engine.data.ledger import Ledger, SourceLedger
from dsm_engine.data.preparation.blocks import SourceFile
from dsm_engine.data.preparation.part import Part, RowFault
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.errors import DsmError


class Duplicates(Protocol):
    """Knows the documents that were kept before."""

    def add(self, extra: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """For documents known by their fingerprints: 0 new, 1 the same, 2 nearly the same."""
        ...


_DUPLICATE_CAUSES = {1: "duplicate", 2: "near_duplicate"}


@dataclass(kw_only=True, slots=True)
class Survivors:
    """The documents of a part that passed all quality steps."""

    block: int
    source_idx: int
    documents: NDArray[np.int32]
    """Their numbers in the part, rising."""


@dataclass(kw_only=True, slots=True)
class Contamination:
    """What decontamination found: how many examples of each source, and which benchmark items."""

    examples: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(benchmark, source, removed | reported) -> examples"""
    items: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """(benchmark, source) -> numbers of benchmark items"""

    def as_rows(self) -> list[dict[str, Any]]:
        """A row for each benchmark and source, as it stands in the manifest."""
        return [
            {
                "benchmark": benchmark,
                "source": source,
                "removed": self.examples[benchmark, source, "removed"],
                "reported": self.examples[benchmark, source, "reported"],
                "benchmark_items": len(items),
            }
            for (benchmark, source), items in sorted(self.items.items())
        ]


class Resolver:
    """Takes the parts in order; `ledger`, `survivors` and `contamination` are what it found.

    Raises DsmError with `file:line:byte` where the recipe's policies make a bad row an error.
    """

    def __init__(
        self,
        recipe: PreprocessRecipe,
        sources: Sequence[SourceFile],
        *,
        benchmarks: tuple[str, ...] | list[str] = (),
        duplicates: Duplicates | None = None,
        rejects: IO[bytes] | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.survivors: list[Survivors] = []
        self.contamination = Contamination()
        self.num_quarantined = 0
        self._recipe = recipe
        self._sources = sources
        self._benchmarks = benchmarks
        self._duplicates = duplicates
        self._rejects = rejects
        self._num_lines = [0] * len(sources)
        self._num_rows = [0] * len(sources)

    def begin_at(self, source_idx: int, num_lines: int) -> None:
        """Says how many lines of a source stand before the first part that is added."""
        self._num_lines[source_idx] = num_lines

    def add(self, part: Part) -> None:
        """Decides about the next part's rows."""
        counts, ledger = part.counts, self.ledger.source(part.counts.source)
        ledger.read += counts.num_rows
        for fault in counts.faults:
            self._reject(fault, part, ledger)
        kept = np.ones(part.num_documents, np.bool_)
        removes = self._removes_contaminated(counts.source_idx)
        if removes and "benchmark" in part.extra:
            self._remove_contaminated(part, kept, ledger)
        if self._duplicates is not None:
            self._drop_duplicates(part, kept, ledger)
        if not removes and "benchmark" in part.extra:
            self._enter(part, np.flatnonzero(kept & (part.extra["benchmark"] >= 0)), "reported")
        documents = np.flatnonzero(kept).astype(np.int32)
        self.survivors.append(
            Survivors(block=counts.block, source_idx=counts.source_idx, documents=documents)
        )
        self._num_lines[counts.source_idx] += counts.num_lines
        self._num_rows[counts.source_idx] += counts.num_rows

    def finish(self) -> None:
        """Raises DsmError where a source had no rows, or nothing is left of all."""
        for source, num_rows in zip(self._sources, self._num_rows, strict=True):
            if num_rows == 0:
                raise DsmError(f"{source.path}: holds no examples")
        if not any(len(survivors.documents) for survivors in self.survivors):
            total = self.ledger.total
            causes = ", ".join(f"{num} {cause}" for cause, num in sorted(total.dropped.items()))
            raise DsmError(
                f"{self._recipe.output}: no example is left of {total.read} rows: {causes}"
            )

    def _reject(self, fault: RowFault, part: Part, ledger: SourceLedger) -> None:
        """Counts a row that is not kept, or ends the run, as the policies say."""
        place = self._place(fault, part)
        if fault.kind == "unknown":
            if self._recipe.on_unknown == "count":  # it is a document all the same
                return
            raise DsmError(
                f"{place}: {fault.reason}; on_unknown: count goes on with its unknown token"
            )
        if fault.kind == "overlong" and self._recipe.overlong == "error":
            raise DsmError(f"{place}: {fault.reason}; choose overlong: drop or truncate")
        if fault.kind == "fault" and self._recipe.on_error == "error":
            raise DsmError(
                f"{place}: {fault.reason}; on_error: skip or quarantine goes on without such rows"
            )
        ledger.dropped[fault.cause] += 1
        chosen = self._recipe.on_error == "quarantine" and fault.kind != "omitted"
        if chosen or fault.kind == "unverified":
            self._quarantine(fault, part)

    def _removes_contaminated(self, source_idx: int) -> bool:
        policy = self._recipe.sources[source_idx].decontaminate
        return (policy or self._sources[source_idx].reader.decontaminate) == "remove"

    def _remove_contaminated(
        self, part: Part, kept: NDArray[np.bool_], ledger: SourceLedger
    ) -> None:
        benchmark, item = part.extra["benchmark"], part.extra["benchmark_item"]
        found = np.flatnonzero(benchmark >= 0)
        for idx, fault in zip(found.tolist(), part.counts.contaminated, strict=True):
            reason = f"holds text of item {item[idx]} of {self._benchmarks[benchmark[idx]]}"
            self._quarantine(replace(fault, reason=reason), part)
        if len(found):
            kept[found] = False
            ledger.dropped["contaminated"] += len(found)
            self._enter(part, found, "removed")

    def _enter(self, part: Part, documents: NDArray[np.int64], what: str) -> None:
        for idx in documents.tolist():
            name = self._benchmarks[part.extra["benchmark"][idx]]
            where = name, part.counts.source
            self.contamination.examples[(*where, what)] += 1
            items = self.contamination.items.setdefault(where, set())
            items.add(int(part.extra["benchmark_item"][idx]))

    def _drop_duplicates(self, part: Part, kept: NDArray[np.bool_], ledger: SourceLedger) -> None:
        assert self._duplicates is not None
        known = self._duplicates.add({name: array[kept] for name, array in part.extra.items()})
        for verdict, cause in _DUPLICATE_CAUSES.items():
            if count := int((known == verdict).sum()):
                ledger.dropped[cause] += count
        kept[kept] = known == 0

    def _quarantine(self, fault: RowFault, part: Part) -> None:
        if self._rejects is None:
            return
        path = self._sources[part.counts.source_idx].path
        self._rejects.write(_quarantine_line(str(path), self._line(fault, part), fault))
        self.num_quarantined += 1

    def _place(self, fault: RowFault, part: Part) -> str:
        path = self._sources[part.counts.source_idx].path
        line = self._line(fault, part)
        return f"{path}:row {line}" if fault.byte is None else f"{path}:{line}:{fault.byte}"

    def _line(self, fault: RowFault, part: Part) -> int:
        """The fault's line in its file."""
        return self._num_lines[part.counts.source_idx] + fault.line


def _quarantine_line(path: str, line: int, fault: RowFault) -> bytes:
    """Where the row stood, why it is here, and the row: as text, or in base64 where it is none."""
    entry: dict[str, Any] = {
        "path": path,
        "line": line,
        "byte": fault.byte,
        "cause": fault.cause,
        "reason": fault.reason,
    }
    try:
        entry["row"] = fault.raw.decode()
    except UnicodeDecodeError:
        entry["row_base64"] = base64.b64encode(fault.raw).decode()
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
