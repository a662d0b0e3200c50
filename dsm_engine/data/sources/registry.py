"""The readers by name."""

from typing import Any

from dsm_engine.data.sources.examples import ExamplesReader
from dsm_engine.data.sources.gaokao_bench import GaokaoBenchReader
from dsm_engine.data.sources.gsm8k import Gsm8kReader
from dsm_engine.data.sources.jsonl import JsonlReader
from dsm_engine.data.sources.lila import LilaReader
from dsm_engine.data.sources.math import MathReader
from dsm_engine.data.sources.math_instruct import MathInstructReader
from dsm_engine.data.sources.mathcoder import MathcoderReader
from dsm_engine.data.sources.mwptoolkit import MwpToolkitReader
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.tal_scq5k import TalScq5kReader
from dsm_engine.data.sources.tora import ToraReader
from dsm_engine.data.sources.word_problems import Ape210kReader, Math23kReader
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest
from dsm_engine.recipes import validate_recipe

_READERS: tuple[type[Reader], ...] = (
    ExamplesReader,
    JsonlReader,
    Gsm8kReader,
    MathReader,
    MathInstructReader,
    LilaReader,
    ToraReader,
    MathcoderReader,
    TalScq5kReader,
    Ape210kReader,
    Math23kReader,
    MwpToolkitReader,
    GaokaoBenchReader,
)
READERS: dict[str, type[Reader]] = {reader.name: reader for reader in _READERS}


def make_reader(
    name: str, *, source: str = "", options: dict[str, Any] | None = None, where: str = "sources"
) -> Reader:
    """The reader called `name`; `where` begins the message of the DsmError it raises."""
    if name not in READERS:
        raise DsmError(f"{where}: unknown reader {name!r} {nearest(name, list(READERS))}")
    reader = READERS[name]
    checked = validate_recipe(options or {}, reader.Options, f"{where}: options of {name!r}")
    return reader(source=source, options=checked)
