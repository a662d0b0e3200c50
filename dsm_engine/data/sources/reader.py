"""What a reader is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from dsm_engine.data.example import Example
from dsm_engine.data.sources.records import read_records
from dsm_engine.data.sources.rows import Row, parse_object
from dsm_engine.recipes import Section


class NoOptions(Section):
    """A reader of one fixed schema has nothing to choose."""


class Reader(ABC):
    """Reads one source: first its rows, then, where and when it suits the caller, their examples.

    A bad row is an ExampleFault of `example` and leaves `rows` whole.
    """

    name: ClassVar[str]
    """What recipes call the reader."""
    licence: ClassVar[str] = ""
    decontaminate: ClassVar[Literal["remove", "report"]] = "remove"
    """What becomes of examples with benchmark text where the recipe does not say. Official training
    splits of the benchmarks' own families are kept as they are published."""
    members: ClassVar[tuple[str, ...]] = ()
    """The keys under which an object that is the whole file holds the list of its records."""
    Options: ClassVar[type[Section]] = NoOptions

    def __init__(self, *, source: str = "", options: Section | None = None) -> None:
        """`source` is the name its examples carry: the reader's own where it is empty."""
        self.source = source or self.name
        self.options = options or self.Options()

    def rows(self, path: Path) -> Iterator[Row]:
        """The records of the file. Raises DsmError where the file itself is at fault."""
        return read_records(path, members=self.members)

    def example(self, row: Row) -> Example:
        """The example in a row. Raises ExampleFault."""
        return self.parse(parse_object(row), row)

    @abstractmethod
    def parse(self, record: dict[str, Any], row: Row) -> Example:
        """The example in a JSON record. Raises ExampleFault."""

    def stable_id(self, row: Row) -> str:
        """An id made from the content, for sources without a key."""
        return f"{self.source}/{row.digest}"
