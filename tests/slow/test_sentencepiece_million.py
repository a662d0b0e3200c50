"""Documents, real and random, through the core and the library: the same ids.

DSM_SENTENCEPIECE_DOCUMENTS of them for each model, 100,000 by default; `make test-million` takes
1,000,000.
"""

import gzip
import json
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.sentencepiece_models import SHAPES, random_text, train_model

pytestmark = pytest.mark.slow

BATCH = 20_000
NUM_DOCUMENTS = int(os.environ.get("DSM_SENTENCEPIECE_DOCUMENTS", "100000"))
SHAPES_HERE = ("bytes_prefix", "unknown_symbols")


def _published(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from lines
            lines.seek(0)
            for line in lines:
                row = json.loads(line)
                values = row.values() if isinstance(row, dict) else row
                yield from (value for value in values if isinstance(value, str))


def _documents(shared: Path) -> Iterator[str]:
    """The published texts among random ones, one for two, then random ones for ever."""
    draw = random.Random(7)
    for text in _published(shared / "data"):
        yield text
        yield random_text(draw)
        yield random_text(draw)
    while True:
        yield random_text(draw)


@pytest.mark.parametrize("shape", SHAPES_HERE)
def test_documents_have_the_librarys_ids(tmp_path: Path, shared_folder: Path, shape: str) -> None:
    path = train_model(tmp_path / "tokenizer.model", **SHAPES[shape])
    tokenizer = SentencePieceTokenizer(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.encoder == "native"
    documents = islice(_documents(shared_folder), NUM_DOCUMENTS)
    num_compared = 0
    while texts := list(islice(documents, BATCH)):
        ids, offsets = tokenizer.encode_flat(texts, threads=2)
        for idx, expected in enumerate(library.EncodeAsNumpy(texts)):
            found = ids[offsets[idx] : offsets[idx + 1]]
            assert np.array_equal(found, expected), texts[idx]
        num_compared += len(texts)
    assert num_compared == NUM_DOCUMENTS
