"""Any text at all has the library's ids, from every pipeline that fastokens covers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.tokenizers.flat_ids import lists_of_ids
from dsm_engine.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from tests.huggingface_models import CONTROL_STRINGS, PIPELINES, UNMARKED, bpe

pytest.importorskip("fastokens")

PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([*CONTROL_STRINGS, *UNMARKED, " ", "   ", "\0", "\r\n", "\U0001f600", "the"]),
    st.text("ab the中文<s>|/[]INST'\n1 ", max_size=40),
)
TEXTS = st.lists(PARTS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[HuggingFaceTokenizer]:
    folder: Path = tmp_path_factory.mktemp("pipelines")
    return [HuggingFaceTokenizer(bpe(folder / f"{name}.json", name)) for name in PIPELINES]


@given(texts=st.lists(TEXTS, max_size=4))
@settings(max_examples=200)
def test_any_text_has_the_librarys_ids(tokenizers, texts: list[str]) -> None:
    assert sum(tokenizer.encoder == "fastokens" for tokenizer in tokenizers) >= 3
    for tokenizer in tokenizers:
        for continuation in (False, True):
            expected = tokenizer._library.encode(texts, continuation=continuation)
            found = tokenizer.encode_flat(texts, continuation=continuation)
            assert lists_of_ids(*found) == expected
