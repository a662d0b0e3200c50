"""Duplicates: which differences between two texts count, and which document is kept."""

import random
import time

import numpy as np
import pytest

from dsm_engine.data.example import Block, Example
from dsm_engine.data.quality.deduplication import (
    EXACT,
    NEAR,
    NEW,
    DuplicateFinder,
    duplicate_text,
    fingerprints,
)
from dsm_engine.errors import DsmError
from tests.text_reference import jaccard

STORY = (
    "Mara packs {} boxes of pears for the market, and every box holds {} pears. On the way she"
    " meets her brother, who takes two of the boxes to their aunt. How many pears are left for the"
    " market when she arrives? She starts with all of her boxes and subtracts the pears that her"
    " brother took, so that the answer is a product minus another product of the same kind. A table"
    " with one row for each of the boxes helps those who would rather count than multiply."
)
REWORDED = STORY.format(4, 6).replace("multiply", "calculate")


def verdicts(*texts: str, threshold: float = 0.9) -> list[int]:
    return DuplicateFinder(threshold).add(fingerprints(texts))[0].tolist()


def example(**changes) -> Example:
    fields = {
        "id": "1",
        "question": STORY.format(4, 6),
        "blocks": (Block(kind="text", text="So it is 12."),),
        "answer": "12",
        "language": "en",
        "format": "cot",
        "source": "made",
    }
    return Example(**{**fields, **changes})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Two  apples\r\nand\ta pear", "two apples and a PEAR"),
        ("the value of $x + 1$ is", r"the value of \(x+1\) is"),
        (r"\[\dfrac{1}{2}\]", r"$$\frac{1}{2}$$"),
        (r"\left( a \, b \right)\quad c", "(a b) c"),
        ("10,000 and 1{,}234,567", r"10000 and 1,\!234,567"),
        ("小明有３个苹果，一共？", "小明有 3 个苹果,一共?"),
        ("Jane’s “half”", 'Jane\'s "half"'),
        ("x² + y₁", "x^2 + y_1"),
        ("a\\，b １{，}０００", "a\\,b 1000"),
        ("Straße ﬁn", "STRASSE fin"),
        ("5 − 3 — 1", "5 - 3 - 1"),
    ],
)
def test_forms_of_one_text_are_exact_duplicates(first: str, second: str):
    assert verdicts(first, second) == [NEW, EXACT]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x2", "x²"),
        ("12 34", "1234"),
        ("1,23", "123"),
        ("1.5", "15"),
        ("a + b", "a - b"),
        ("sin x", r"\sin x"),
        ("ab", "a b"),
        ("小明", "明小"),
        ("", "a"),
    ],
)
def test_other_texts_are_no_exact_duplicates(first: str, second: str):
    assert EXACT not in verdicts(first, second)


def test_a_text_with_another_word_is_a_near_duplicate():
    assert verdicts(STORY.format(4, 6), REWORDED) == [NEW, NEAR]


def test_a_template_with_other_numbers_is_another_problem():
    assert verdicts(STORY.format(4, 6), STORY.format(4, 7)) == [NEW, NEW]


def test_numbers_in_another_order_are_another_problem():
    assert verdicts(STORY.format(4, 6), STORY.format(6, 4)) == [NEW, NEW]


def test_chinese_is_compared_by_characters():
    text = "果园里有苹果树和梨树，苹果树比梨树的两倍还多一些，请问果园里一共有多少棵树？" * 2
    assert verdicts(text, text[:-4] + "几棵？", "学校" + text[10:40]) == [NEW, NEAR, NEW]


def test_documents_are_compared_with_kept_ones_alone():
    # The third is like the second, which is gone, and less like the first.
    first = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(245)]
    second = ["x" if i in (41, 101) else word for i, word in enumerate(first)]
    third = ["y" if i in (71, 161) else word for i, word in enumerate(second)]
    texts = [" ".join(words) for words in (first, second, third)]
    assert jaccard(*texts[1:]) > 0.9 > jaccard(*texts[::2])
    assert verdicts(*texts) == [NEW, NEAR, NEW]
    assert verdicts(*texts[1:]) == [NEW, NEAR]


def test_a_duplicate_names_the_earliest_document_kept():
    finder = DuplicateFinder()
    first = fingerprints(["other", STORY.format(4, 6)])
    then = fingerprints([STORY.format(4, 6), "new", REWORDED])
    assert finder.add(first)[1].tolist() == [-1, -1]
    assert finder.add(then)[1].tolist() == [1, -1, 1]


def test_examples_of_other_formats_or_languages_are_no_duplicates():
    texts = [
        duplicate_text(example()),
        duplicate_text(example(format="pot")),
        duplicate_text(example(language="zh")),
        duplicate_text(example(blocks=(Block(kind="program", text="So it is 12."),))),
        duplicate_text(example(id="2", source="other", topic="pears")),
    ]
    assert verdicts(*texts, threshold=0.5) == [NEW, NEW, NEW, NEW, EXACT]


def test_other_solutions_of_a_question_stay():
    other = Block(
        kind="text",
        text="Two boxes leave, so there are 4 - 2 = 2 boxes of 6 pears, which makes 12 pears.",
    )
    texts = [duplicate_text(example()), duplicate_text(example(blocks=(other,)))]
    assert verdicts(*texts) == [NEW, NEW]


def test_near_duplicates_are_found_as_their_similarity_says():
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(500)]
    texts, copies = [], []
    for _ in range(1500):
        text = rng.choices(words, k=rng.randint(100, 250))
        texts.append(" ".join(text))
        changed = rng.uniform(0, 0.04)
        copies.append(" ".join("x" if rng.random() < changed else word for word in text))
    finder = DuplicateFinder()
    finder.add(fingerprints(texts))
    found = finder.add(fingerprints(copies))[0] != NEW
    similarity = np.array([jaccard(a, b) for a, b in zip(texts, copies, strict=True)])
    assert found[similarity >= 0.97].mean() > 0.99
    assert found[similarity < 0.82].mean() < 0.02
    near_threshold = found[(similarity >= 0.88) & (similarity < 0.92)].mean()
    assert 0.3 < near_threshold < 0.7


def test_the_signature_estimates_the_similarity_without_bias():
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghij", k=5)) for _ in range(3000)]
    errors = []
    for _ in range(400):
        first = rng.choices(words, k=200)
        cut = rng.randint(20, 180)
        texts = [" ".join(first), " ".join([*first[:cut], *rng.choices(words, k=200 - cut)])]
        signature = fingerprints(texts).signature
        equal = (signature[0] == signature[1]).mean()
        errors.append((equal - 1 / 256) / (255 / 256) - jaccard(*texts))
    assert abs(np.mean(errors)) < 0.008
    assert np.std(errors) < 1.15 * np.sqrt(0.25 / 128)


def test_texts_of_any_kind_have_fingerprints():
    texts = ["", " \r\n ", "\0", "a\0b", "\U0001f600", "\x1f", "$", "\\", "\\(", "e\u0301", "..."]
    prints = fingerprints(texts)
    assert prints.signature.shape == (len(texts), 128)
    assert len(prints) == len(texts)
    assert verdicts("", " \r\n ", "\0")[1:] == [EXACT, EXACT]


def test_no_texts_have_no_fingerprints():
    verdict, of = DuplicateFinder().add(fingerprints([]))
    assert len(verdict) == len(of) == 0


def test_half_a_character_is_an_error_that_says_where():
    with pytest.raises(DsmError, match=r"lone surrogate.* character 4: 'two \\ud800 more'"):
        fingerprints(["fine", "two \ud800 more"])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float):
    with pytest.raises(DsmError, match="threshold: a similarity above 0 and at most 1"):
        DuplicateFinder(threshold)


@pytest.mark.parametrize("text", ["a", "\\(", "$ ", "1,234", "中", "\x1f", "$a", "{,}\\"])
def test_a_megabyte_of_anything_takes_no_more_than_its_share(text: str):
    start = time.perf_counter()
    fingerprints([text * ((1 << 20) // len(text))])
    assert time.perf_counter() - start < 5
