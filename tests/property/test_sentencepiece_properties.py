"""Any text at all has the library's ids, from every shape of model the core covers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.sentencepiece_models import CONTROLS, SHAPES, SYMBOLS, train_model

PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([*CONTROLS, *SYMBOLS, "\u2581", " ", "   ", "\0", "\U0001f600", "the", "aab"]),
    st.text("ab the中文<s>/\n", max_size=40),
)
TEXTS = st.lists(PARTS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[SentencePieceTokenizer]:
    folder: Path = tmp_path_factory.mktemp("shapes")
    return [
        SentencePieceTokenizer(train_model(folder / f"{name}.model", **settings))
        for name, settings in SHAPES.items()
    ]


@given(texts=st.lists(TEXTS, max_size=4))
@settings(max_examples=200)
def test_any_text_has_the_librarys_ids(tokenizers, texts: list[str]) -> None:
    for tokenizer in tokenizers:
        assert tokenizer.encoder == "native"
        for continuation in (False, True):
            expected = tokenizer._encode_by_library(texts, continuation=continuation)
            assert tokenizer.encode_batch(texts, continuation=continuation) == expected


@given(text=TEXTS)
@settings(max_examples=200)
def test_a_continuation_decodes_to_its_text_where_there_are_bytes(tokenizers, text: str) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text, continuation=True)
        if tokenizer.unk_id not in ids:
            decoded = tokenizer.decode(ids, continuation=True)
            assert decoded == text.replace("\u2581", " ")
