"""Lila: mathematical reasoning with programs, collected from 20 sets."""

from typing import Any, Literal

from dsm_engine.data.example import Block, Example, ExampleFault, ExampleOmitted
from dsm_engine.data.sources.programs import check_python
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field
from dsm_engine.recipes import Section

_KEYS = {
    "input": "Input",
    "output_program": "Output Program",
    "output_answer": "Output Answer",
    "dataset": "Dataset",
    "split": "Split",
}


class LilaOptions(Section):
    """Which rows are read."""

    splits: tuple[Literal["train", "dev", "test"], ...] = ("train",)
    """Rows of other splits are omitted. A row that names none is read."""


class LilaReader(Reader):
    """`{"input", "output_program", "output_answer", "dataset", "split"}`, to PoT.

    Also as in the original archive: a file with a list under `Instances`, keys such as
    `"Output Program"`, programs and answers being lists, of which the first is taken. Rows without
    a program are omitted: an answer alone teaches no reasoning.
    """

    name = "lila"
    licence = "CC-BY-4.0"
    members = ("Instances",)
    Options = LilaOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        options = self.options
        assert isinstance(options, LilaOptions)
        values = {key: record.get(key, record.get(original)) for key, original in _KEYS.items()}
        for key in ("output_program", "output_answer"):
            values[key] = _first(values[key], key)
        split = optional_text(values, "split")
        if split and split not in options.splits:
            raise ExampleOmitted("split_not_chosen", f"is of the split {split!r:.80}")
        program = optional_text(values, "output_program")
        if not program:
            raise ExampleOmitted("no_solution", "the publisher gives no program")
        check_python(program)
        dataset = optional_text(values, "dataset")
        return Example(
            id="/".join(filter(None, (self.source, dataset, row.digest))),
            question=text_field(values, "input", "missing_question"),
            blocks=(Block(kind="program", text=program),),
            answer=optional_text(values, "output_answer"),
            language="en",
            format="pot",
            source=self.source,
            licence=self.licence,
        )


def _first(value: Any, key: str) -> Any:
    if not isinstance(value, list):
        return value
    if value and not isinstance(value[0], str | int | float | None):
        raise ExampleFault("bad_value", f"{key!r} is not a list of texts")
    return value[0] if value else None
