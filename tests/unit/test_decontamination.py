"""Benchmark texts in training examples: by n-grams, whole, and as questions."""

import time
from pathlib import Path

import pytest

from dsm_engine.data.quality.decontamination import (
    CONTAINED,
    NGRAM,
    NOT_FOUND,
    QUESTION,
    BenchmarkRecipe,
    ContaminationIndex,
    benchmark_texts,
    load_benchmarks,
)
from dsm_engine.errors import DsmError

KITE = "Olga flies a red kite for 35 minutes, rests, and then flies it for 20 minutes more."
POOL = "Find the depth of the pool."
SUM = "Compute $1 + 2$."
PEARS = "果园里原来有梨树25棵，又种了13棵，现在果园里一共有多少棵梨树？"
DOGS = "3只狗一共有几条腿？"


@pytest.fixture
def index() -> ContaminationIndex:
    index = ContaminationIndex()
    index.add("english", [KITE, POOL, SUM], "en")
    index.add("chinese", [PEARS, DOGS], "zh")
    return index


def kind_of(index: ContaminationIndex, question: str, answer: str = "") -> int:
    return index.find([question], [answer]).kind[0]


def test_ten_words_in_a_row_are_found_in_the_question_or_the_answer(index: ContaminationIndex):
    ten = "So Olga flies a red kite for 35 minutes, rests, and goes home."
    assert kind_of(index, ten) == NGRAM
    assert kind_of(index, "Who?", ten) == NGRAM
    assert kind_of(index, "So Olga flies a red kite for 35 minutes, rests.") == NOT_FOUND


def test_words_of_question_and_answer_make_no_common_run(index: ContaminationIndex):
    words = KITE.split()
    assert kind_of(index, " ".join(words[:8]), " ".join(words[8:])) == NOT_FOUND


def test_a_text_shorter_than_an_ngram_must_stand_there_whole(index: ContaminationIndex):
    assert kind_of(index, "Here you find the depth of the pool: 2 m.") == CONTAINED
    assert kind_of(index, "Here you find the depth of the well.") == NOT_FOUND
    assert kind_of(index, "Here you find the depth of the pools.") == NOT_FOUND


def test_a_text_of_two_words_is_found_only_as_the_question(index: ContaminationIndex):
    assert kind_of(index, "compute \\(1+2\\)") == QUESTION
    assert kind_of(index, "Now compute $1 + 2$.") == NOT_FOUND
    assert kind_of(index, "Which?", "Compute $1 + 2$.") == NOT_FOUND


def test_a_question_that_is_a_benchmarks_is_found_at_any_length(index: ContaminationIndex):
    assert [kind_of(index, text) for text in (KITE, POOL, SUM, PEARS, DOGS)] == [QUESTION] * 5


def test_hits_say_which_benchmark_and_which_item(index: ContaminationIndex):
    hits = index.find([DOGS, "nothing", POOL], ["", KITE, ""])
    assert [benchmark.name for benchmark in index.benchmarks] == ["english", "chinese"]
    assert hits.benchmark.tolist() == [1, 0, 0]
    assert hits.item.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "question",
    [
        "olga flies a red kite for 35 minutes rests and THEN",
        "(“Olga flies a red kite for 35 minutes, rests, and then”)",
        "Olga  flies\r\na\tred kite for $35$ minutes; rests: and then!",
        "*Olga* flies a `red` kite for \\(35\\) minutes, rests, and [then]",
        "Ｏｌｇａ flies a red kite for ３５ minutes, rests, and then",
    ],
)
def test_case_punctuation_and_delimiters_do_not_hide_a_run(
    index: ContaminationIndex, question: str
):
    assert kind_of(index, question) == NGRAM


@pytest.mark.parametrize(
    ("formula", "same"),
    [
        ("$x^2 + 3x$", "\\(x^2+3x\\)"),
        ("\\[x^2 + 3x\\]", "$$ x^2 + 3 x $$"),
        ("$x$-axis", "$ x$-axis"),
        ("$(a + b)$", "\\((a+b)\\)"),
    ],
)
def test_a_formula_is_one_word_however_it_is_set(formula: str, same: str):
    index = ContaminationIndex()
    index.add("made", [f"one two three {formula} four"], "en")
    assert kind_of(index, f"zero one two three {same} four five") == CONTAINED


def test_a_formula_is_kept_whole():
    index = ContaminationIndex()
    index.add("made", ["Solve $a + b = c$ now"], "en")
    assert index.benchmarks[0].coverage == {"contained": 1}
    assert kind_of(index, "Please solve $a + b = c$ now.") == CONTAINED
    assert kind_of(index, "Please solve $a + b = d$ now.") == NOT_FOUND


def test_brackets_of_a_formula_are_not_stripped():
    index = ContaminationIndex()
    index.add("made", ["now solve $(a)$ today"], "en")
    assert kind_of(index, "We now solve $a$ today.") == NOT_FOUND


def test_prices_are_no_formulas():
    index = ContaminationIndex()
    text = "Ice costs $5 and tea costs $3 or $4 a cup, says Ida."
    index.add("made", [text], "en")
    assert index.benchmarks[0].coverage == {"ngram": 1}
    assert kind_of(index, "So " + text) == NGRAM


@pytest.mark.parametrize("stray", ["$$", "\\(", "\\[", "$"])
def test_a_delimiter_too_many_hides_no_prose(index: ContaminationIndex, stray: str):
    assert kind_of(index, f"Take {stray} first. {KITE} Then {stray}x$ and $$y$$.") == NGRAM
    assert kind_of(index, f"Take {stray}{KITE}{stray} then.") == NGRAM


def test_chinese_runs_are_of_characters_and_whole_numbers(index: ContaminationIndex):
    assert kind_of(index, "问：果园里原来有 梨树25棵, 又种了１３棵，现在果园里少了几棵？") == NGRAM
    assert (
        kind_of(index, "问：果园里原来有梨树25棵，又种了130棵，现在果园里少了几棵？") == NOT_FOUND
    )
    assert kind_of(index, "问：现在果园里一共有多少棵梨树？") == NOT_FOUND


def test_a_short_chinese_text_must_stand_there_whole(index: ContaminationIndex):
    assert kind_of(index, "请问，3只狗一共有几条腿？") == CONTAINED
    assert kind_of(index, "请问，13只狗一共有几条腿？") == NOT_FOUND


def test_a_text_is_looked_at_in_both_ways_whatever_its_language(index: ContaminationIndex):
    assert kind_of(index, f"（翻译）{KITE} 奥尔加放风筝多久？") == NGRAM
    assert kind_of(index, f"Translate: {PEARS}") == NGRAM


def test_coverage_counts_texts_by_how_they_are_found(index: ContaminationIndex):
    index.add("odd", ["", "...", "a"], "en")
    english, chinese, odd = index.benchmarks
    assert english.coverage == {"ngram": 1, "contained": 1, "equality": 1}
    assert chinese.coverage == {"ngram": 1, "contained": 1}
    assert odd.coverage == {"nothing": 2, "equality": 1}
    assert (english.num_items, odd.num_items) == (3, 3)


def test_an_empty_index_finds_nothing():
    assert kind_of(ContaminationIndex(), KITE, KITE) == NOT_FOUND


def test_an_empty_question_is_no_benchmarks(index: ContaminationIndex):
    index.add("empty", [""], "en")
    assert kind_of(index, "") == NOT_FOUND


@pytest.mark.parametrize("text", ["\0", "\\", "$", "$$", "\\(", "\U0001f600", "\x1f", "\r\n"])
def test_odd_characters_hide_nothing_behind_them(index: ContaminationIndex, text: str):
    assert kind_of(index, f"Now {text} {KITE} {text}") == NGRAM


def test_half_a_character_is_an_error_that_says_where(index: ContaminationIndex):
    with pytest.raises(DsmError, match=r"lone surrogate.* character 1"):
        index.find(["a\udc00"], [""])
    with pytest.raises(DsmError, match="lone surrogate"):
        index.add("broken", ["\udc00"], "en")


@pytest.mark.parametrize("settings", [{"ngram": 2}, {"chinese_ngram": 5}, {"ngram": 256}])
def test_an_ngram_out_of_range_is_refused(settings: dict[str, int]):
    with pytest.raises(DsmError, match="ngram: from the shortest text"):
        ContaminationIndex(**settings)


@pytest.mark.parametrize(
    "text", ["a ", "\\( ", "\\[", "$$ ", "$a ", "\\$", "中", "1 ", "(", "\n\n$"]
)
def test_a_megabyte_of_anything_takes_no_more_than_its_share(index: ContaminationIndex, text: str):
    start = time.perf_counter()
    index.find([text * ((1 << 20) // len(text))], [""])
    assert time.perf_counter() - start < 5


def recipe(path: Path, **changes) -> BenchmarkRecipe:
    fields = {"name": "made", "path": path, "language": "en"}
    return BenchmarkRecipe.model_validate({**fields, **changes})


def test_benchmarks_are_read_by_their_fields(write_records, tmp_path: Path):
    plain = write_records({"question": POOL, "answer": 7}, name="plain.jsonl")
    chat = write_records({"messages": [{"role": "user", "content": PEARS}]}, name="chat.jsonl")
    index = load_benchmarks(
        [
            recipe(plain, name="plain", fields=["question", "answer"]),
            recipe(chat, name="chat", language="zh", fields=["messages.0.content"]),
        ]
    )
    assert [(b.name, b.num_items, b.coverage.total()) for b in index.benchmarks] == [
        ("plain", 1, 2),
        ("chat", 1, 1),
    ]
    hits = index.find([PEARS, "7"], ["", ""])
    assert (hits.benchmark.tolist(), hits.item.tolist()) == ([1, 0], [0, 0])


def test_a_missing_benchmark_file_is_an_error(tmp_path: Path):
    with pytest.raises(DsmError, match=r"none\.jsonl: cannot be read: No such file"):
        load_benchmarks([recipe(tmp_path / "none.jsonl")])


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"problem": POOL}, "question"),
        ({"question": "  "}, "question"),
        ({"question": ["a"]}, "question"),
        ({"messages": []}, "messages.0.content"),
        ({"messages": "a"}, "messages.0.content"),
    ],
)
def test_a_missing_field_is_an_error_that_names_the_keys(write_records, record, key: str):
    path = write_records({"messages": [{"content": POOL}], "question": POOL}, record)
    keys = ", ".join(record)
    with pytest.raises(DsmError, match=rf"a\.jsonl:2:\d+: no text under '{key}' \(keys: {keys}\)"):
        load_benchmarks([recipe(path, fields=[key])])


def test_a_damaged_record_is_an_error_with_its_place(write_records):
    path = write_records({"question": POOL}, b'{"question": ')
    with pytest.raises(DsmError, match=r"a\.jsonl:2:\d+: is not JSON.* \(benchmark 'made'\)"):
        load_benchmarks([recipe(path)])


def test_a_file_without_records_is_an_error(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n")
    with pytest.raises(DsmError, match=r"a\.jsonl: holds no texts of the benchmark 'made'"):
        load_benchmarks([recipe(path)])


def test_two_benchmarks_of_one_name_are_an_error(write_records):
    one = recipe(write_records({"question": POOL}))
    with pytest.raises(DsmError, match="benchmark 'made' stands twice"):
        load_benchmarks([one, recipe(one.path, name="other"), one])
    with pytest.raises(DsmError, match="benchmark 'made' stands twice"):
        load_benchmarks([one, one])


def test_the_published_test_sets_are_all_covered(shared_folder: Path):
    evaluation = shared_folder / "data" / "deepseek_math_eval"
    name = "evaluation__datasets__{}.jsonl.gz"
    index = load_benchmarks(
        [
            recipe(evaluation / name.format("gsm8k__test"), name="gsm8k"),
            recipe(
                evaluation / name.format("mgsm_zh__mgsm_zh"),
                name="mgsm_zh",
                language="zh",
                fields=["messages.0.content"],
            ),
            recipe(evaluation / name.format("cmath__test"), name="cmath", language="zh"),
        ]
    )
    assert [b.num_items for b in index.benchmarks] == [1319, 250, 1098]
    assert [b.coverage["ngram"] for b in index.benchmarks] == [1319, 250, 1077]
    assert all(not b.coverage["equality"] for b in index.benchmarks)
    cmath = recipe(evaluation / name.format("cmath__test"))
    questions = [text for _, text in benchmark_texts(cmath)]
    assert (index.find(questions, [""] * len(questions)).kind == QUESTION).all()
