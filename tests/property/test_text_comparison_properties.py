"""Duplicates and n-grams in any text, against plain Python."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm_engine.data.quality.decontamination import ContaminationIndex
from dsm_engine.data.quality.deduplication import DuplicateFinder, fingerprints
from dsm_engine.data.quality.normalization import normalized
from tests import text_reference

PIECES = st.sampled_from(
    [
        *("a", "B", "ab ", "frac", "é", "Ä", "π", "ß", " ", "\n", "\t", "\u3000", "\r\n"),
        *("0", "12", "345", ",", ".", "{,}", ",\\!", "３", "，", "%", "+", "−", "-", "—", "=", "×"),
        *("$", "$$", "\\(", "\\)", "\\[", "\\", "\\\\", "\\left", "\\dfrac", "\\quad", "\\,", "~"),
        *("中", "文", "。", "、", "《", "“", "’", "²", "₁", "ﬁ", "①", "½", "\x1f", "\x1fcot", "_"),
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
FEW_WORDS = st.lists(st.sampled_from(["a", "B,", "$x$", "7", "(c)"]), max_size=9).map(" ".join)
CHINESE = st.lists(st.sampled_from(["中", "文", "，", "12", "1", "+", " "]), max_size=9).map(
    "".join
)


@given(texts=st.lists(TEXTS, min_size=2, max_size=6))
@settings(max_examples=400)
def test_fingerprints_are_equal_where_the_tokens_are(texts: list[str]) -> None:
    prints = fingerprints(texts)
    for i, j in itertools.combinations(range(len(texts)), 2):
        first, second = texts[i], texts[j]
        same = text_reference.tokens(first) == text_reference.tokens(second)
        assert (prints.exact[i] == prints.exact[j]) == same
        same_numbers = text_reference.numbers(first) == text_reference.numbers(second)
        assert (prints.numbers[i] == prints.numbers[j]) == same_numbers


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | TEXTS)
@settings(max_examples=400)
def test_a_text_and_its_normal_form_have_one_fingerprint(text: str) -> None:
    prints = fingerprints([text, text_reference.normalized(text), *normalized([text])])
    assert len(set(prints.exact.tolist())) == 1
    assert (prints.signature == prints.signature[0]).all()


@given(texts=st.lists(TEXTS, max_size=200), threads=st.integers(1, 4))
@settings(max_examples=50)
def test_fingerprints_do_not_depend_on_threads_or_batches(texts: list[str], threads: int) -> None:
    together = fingerprints(texts, threads=threads)
    for i, text in enumerate(texts):
        alone = fingerprints([text])
        assert alone.exact[0] == together.exact[i]
        assert alone.numbers[0] == together.numbers[i]
        assert (alone.signature[0] == together.signature[i]).all()


@given(texts=st.lists(FEW_WORDS | CHINESE, max_size=60), cuts=st.lists(st.integers(0, 60)))
@settings(max_examples=100)
def test_verdicts_do_not_depend_on_how_the_stream_is_cut(texts: list[str], cuts: list[int]) -> None:
    verdicts, of = DuplicateFinder(0.6).add(fingerprints(texts))
    finder = DuplicateFinder(0.6)
    ends = sorted({0, len(texts), *(cut for cut in cuts if cut < len(texts))})
    parts = [finder.add(fingerprints(texts[i:j])) for i, j in itertools.pairwise(ends)]
    assert np.array_equal(np.concatenate([*(part[0] for part in parts), []]), verdicts)
    assert np.array_equal(np.concatenate([*(part[1] for part in parts), []]), of)


@given(
    benchmark=st.lists(FEW_WORDS, max_size=4),
    examples=st.lists(st.tuples(FEW_WORDS, FEW_WORDS), max_size=8),
    ngram=st.integers(3, 6),
    threads=st.integers(1, 3),
)
@settings(max_examples=400)
def test_english_hits_are_those_of_plain_search(benchmark, examples, ngram, threads) -> None:
    index = ContaminationIndex(ngram=ngram)
    index.add("made", benchmark, "en")
    hits = index.find([q for q, _ in examples], [a for _, a in examples], threads=threads)
    for (question, answer), found in zip(examples, hits.benchmark >= 0, strict=True):
        assert found == any(
            text_reference.is_contaminated(
                text_reference.words(text),
                text_reference.words(question),
                text_reference.words(answer),
                ngram=ngram,
                shortest=3,
            )
            for text in benchmark
        )


@given(
    benchmark=st.lists(CHINESE, max_size=4),
    examples=st.lists(st.tuples(CHINESE, CHINESE), max_size=8),
    ngram=st.integers(6, 8),
)
@settings(max_examples=400)
def test_chinese_hits_are_those_of_plain_search(benchmark, examples, ngram) -> None:
    index = ContaminationIndex(chinese_ngram=ngram)
    index.add("made", benchmark, "zh")
    hits = index.find([q for q, _ in examples], [a for _, a in examples])

    def words(text: str) -> list[str]:
        """None of a text that has nothing Chinese."""
        return [] if text.isascii() else text_reference.chinese_words(text)

    for (question, answer), found in zip(examples, hits.benchmark >= 0, strict=True):
        assert found == any(
            text_reference.is_contaminated(
                text_reference.chinese_words(text),
                words(question),
                words(answer),
                ngram=ngram,
                shortest=6,
            )
            for text in benchmark
        )
