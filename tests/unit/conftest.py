"""What the tests of the readers share: small files in, examples out."""

import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.example import Example, ExampleFault
from dsm_engine.data.sources.registry import make_reader


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSONL file of records, or of lines that are bytes already."""

    def write(*records, name: str = "a.jsonl") -> Path:
        path = tmp_path / name
        lines = [
            record if isinstance(record, bytes) else orjson.dumps(record) for record in records
        ]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def read_examples() -> Callable[..., list[Example]]:
    """Reads a file with the reader called so; its options are keywords."""

    def read(path: Path, reader: str, **options) -> list[Example]:
        source = make_reader(reader, options=options)
        return [source.example(row) for row in source.rows(path)]

    return read


@pytest.fixture
def fault_of(read_examples) -> Callable[..., ExampleFault]:
    """The fault that reading the file ends with."""

    def fault(path: Path, reader: str, **options) -> ExampleFault:
        with pytest.raises(ExampleFault) as caught:
            read_examples(path, reader, **options)
        return caught.value

    return fault


@pytest.fixture
def read_published(shared_folder: Path) -> Callable[..., tuple[list[Example], Counter[str]]]:
    """Reads a file of the shared data: what is kept, and the causes of what is not."""

    def read(file: str, reader: str, **options) -> tuple[list[Example], Counter[str]]:
        source = make_reader(reader, options=options)
        kept: list[Example] = []
        dropped: Counter[str] = Counter()
        for row in source.rows(shared_folder / "data" / file):
            try:
                kept.append(source.example(row))
            except ExampleFault as fault:
                dropped[fault.cause] += 1
        return kept, dropped

    return read


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model that knows the printable ASCII characters."""
    from dsm_engine.data.templates import load_template
    from dsm_engine.data.tokenizers import train_sentencepiece

    template = load_template("deepseekmath")
    texts = [template.prompt("What is 1 + 2?", "en", f) for f in ("cot", "pot", "tir")]
    texts.append(string.printable)
    path = tmp_path_factory.mktemp("small_model") / "tokenizer.model"
    train_sentencepiece(texts, path=path, vocab_size=250, symbols=["\n", "```"])
    return path
