"""What became of every row: read = kept + dropped, by cause, for each source."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class SourceLedger:
    """The counts of one source."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """cause -> rows"""
    truncated: int = 0
    """Of those kept: cut to the limit, without their EOS."""
    tokens: int = 0
    supervised_tokens: int = 0
    unknown_tokens: int = 0
    """Of those tokens: characters the tokenizer does not know."""
    repeated: int = 0
    """Documents beyond one for each row that is kept: a mixture goes through a source again."""
    contaminated_kept: int = 0
    """Of those kept: examples with benchmark text, in a source where that is only reported."""
    licences: Counter[str] = field(default_factory=Counter)
    """licence -> rows kept; empty where it is not known"""

    @property
    def documents(self) -> int:
        return self.kept + self.repeated

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "unknown_tokens": self.unknown_tokens,
            "repeated": self.repeated,
            "contaminated_kept": self.contaminated_kept,
            "licences": dict(sorted(self.licences.items())),
        }


class Ledger:
    """The counts of all sources, in the order they were first read."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceLedger] = {}

    def source(self, name: str) -> SourceLedger:
        """The counts of one source, to be added to."""
        return self.sources.setdefault(name, SourceLedger())

    @property
    def total(self) -> SourceLedger:
        """The sums over the sources."""
        total = SourceLedger()
        for counts in self.sources.values():
            total.read += counts.read
            total.kept += counts.kept
            total.dropped.update(counts.dropped)
            total.truncated += counts.truncated
            total.tokens += counts.tokens
            total.supervised_tokens += counts.supervised_tokens
            total.unknown_tokens += counts.unknown_tokens
            total.repeated += counts.repeated
            total.contaminated_kept += counts.contaminated_kept
            total.licences.update(counts.licences)
        return total

    def check(self) -> None:
        """That no row is unaccounted for."""
        for name, counts in self.sources.items():
            assert counts.read == counts.kept + counts.dropped.total(), (name, counts)

    def as_dict(self) -> dict[str, Any]:
        """The totals, and under `sources` those of each; as it stands in the manifest."""
        self.check()
        each = {name: counts.as_dict() for name, counts in self.sources.items()}
        return {**self.total.as_dict(), "sources": each}
