"""Preprocessing, whatever the input: each line accounted for, however the work is cut."""

import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.preparation import blocks
from dsm_engine.data.preparation.quality import open_duplicates
from dsm_engine.data.preparation.tokenize import cut_documents, tokenize
from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.segments import Segment
from dsm_engine.data.sources import rows
from dsm_engine.data.templates import load_template
from dsm_engine.data.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from tests.preprocessing import files_of, recipe_of

_GOOD = st.builds(
    lambda question, solution: orjson.dumps({"question": question, "solution": solution}),
    st.text(max_size=20),
    st.text(max_size=40),
)
_LINES = st.lists(
    st.one_of(
        _GOOD,
        st.binary(max_size=30).filter(lambda line: b"\n" not in line and b"\r" not in line),
        st.sampled_from([b"", b"   ", b"\xef\xbb\xbf", b"[" * 2000, b'{"question":' * 500]),
        st.integers(0, 3000).map(lambda size: b'"' + b"x" * size + b'"'),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    template = load_template("deepseekmath")
    texts = [template.prompt("What is it?", language, "cot") for language in ("en", "zh")]
    train_sentencepiece(texts, path=path, vocab_size=90, symbols=["\n"])
    return path


@settings(max_examples=40)
@given(lines=_LINES, block_bytes=st.integers(1, 900), end=st.sampled_from([b"", b"\n", b"\r\n"]))
def test_every_line_is_kept_or_quarantined_however_the_file_is_cut(
    model: Path, lines, block_bytes, end
):
    good = orjson.dumps({"question": "1?", "solution": "It is 1."})
    with tempfile.TemporaryDirectory() as folder, patch.object(rows, "MAX_LINE_BYTES", 2500):
        path = Path(folder) / "in.jsonl"
        path.write_bytes((end or b"\n").join([good, *lines]) + end)
        output = Path(folder) / "out" / "train"
        recipe = recipe_of(output, model, path, on_error="quarantine")
        report = preprocess(recipe, workers=1)
        whole = files_of(output)
        with patch.object(blocks, "BLOCK_BYTES", block_bytes):
            preprocess(recipe, workers=1)
        assert files_of(output) == whole
        entries = [orjson.loads(e) for e in whole["train.quarantine.jsonl"].splitlines()]
        content = path.read_bytes()
    total = report.ledger.total
    texts = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    filled = [number for number, line in enumerate(texts, 1) if line.strip()]
    assert total.read == len(filled) == total.kept + len(entries)
    assert Counter(entry["cause"] for entry in entries) == total.dropped
    places = [entry["line"] for entry in entries]
    assert places == sorted(set(places)) and set(places) <= set(filled)
    for entry in entries:
        assert content.count(b"\n", 0, entry["byte"]) == entry["line"] - 1


@st.composite
def _documents(draw: st.DrawFn) -> list[list[Segment]]:
    segment = st.builds(
        lambda text, supervised: Segment(text=text, supervised=supervised),
        st.text(alphabet="ab 1\n", min_size=1, max_size=6),
        st.booleans(),
    )
    return draw(st.lists(st.lists(segment, min_size=1, max_size=5), max_size=6))


def reference(tokenizer: Tokenizer, segments: list[Segment]) -> tuple[list[int], list[list[int]]]:
    """One document, one segment after the other."""
    ids, spans = [tokenizer.bos_id], []
    for idx, segment in enumerate(segments):
        start = len(ids)
        ids += tokenizer.encode(segment.text, continuation=idx > 0)
        if segment.supervised and len(ids) > start:
            spans.append([start, len(ids)])
    spans.append([len(ids), len(ids) + 1])
    ids.append(tokenizer.eos_id)
    joined: list[list[int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return ids, joined


@settings(max_examples=80)
@given(documents=_documents(), limit=st.integers(1, 12))
def test_documents_at_once_are_documents_one_by_one(model: Path, documents, limit: int):
    tokenizer = load_tokenizer(model)
    found = tokenize(tokenizer, load_template("deepseekmath"), documents)
    cut, longer = cut_documents(found, limit=limit)
    for name, batch, most in (("whole", found, 10**9), ("cut", cut, limit)):
        token = span = 0
        for idx, segments in enumerate(documents):
            ids, spans = reference(tokenizer, segments)
            spans = [[begin, min(end, most)] for begin, end in spans if begin < most]
            length, count = int(batch.lengths[idx]), int(batch.span_counts[idx])
            assert batch.tokens[token : token + length].tolist() == ids[:most], name
            assert batch.spans[span : span + count].tolist() == spans, name
            assert bool(longer[idx]) == (len(ids) > limit)
            token += length
            span += count
        assert (token, span) == (len(batch.tokens), len(batch.spans))


@given(st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=12))
def test_exact_duplicates_are_those_a_set_knows(batches: list[list[int]]):
    recipe = recipe_of(Path("out"), Path("model"), Path("a"), deduplication="exact")
    duplicates = open_duplicates(recipe)
    assert duplicates is not None
    known: set[int] = set()
    for batch in batches:
        expected = [int(value in known or value in batch[:idx]) for idx, value in enumerate(batch)]
        known.update(batch)
        found = duplicates.add({"exact": np.array(batch, np.uint64)})
        assert found.tolist() == expected
