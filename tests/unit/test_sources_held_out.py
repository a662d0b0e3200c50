"""What is never trained on: the list, and the refusal of its files under any name and form."""

import gzip
import importlib.util
import random
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.data.sources import held_out
from dsm_engine.data.sources.held_out import fingerprint, held_out_questions, refuse_benchmark
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.tokenizers import train_sentencepiece
from dsm_engine.errors import DsmError

NEVER_TRAINED_ON = {
    "gsm8k": {"test.jsonl.gz"},
    "math": {"test.jsonl.gz"},
    "math500": {"test.jsonl.gz"},
    "math_test_tora": {"test.jsonl.gz"},
    "deepseek_math_eval": {
        "evaluation__datasets__gsm8k__test.jsonl.gz",
        "evaluation__datasets__cmath__test.jsonl.gz",
        "evaluation__datasets__mgsm_zh__mgsm_zh.jsonl.gz",
        "evaluation__datasets__agieval__gaokao-mathcloze.jsonl.gz",
        "evaluation__datasets__agieval__gaokao-mathqa.jsonl.gz",
        "evaluation__datasets__ocw__test.jsonl.gz",
        "evaluation__datasets__sat__test.jsonl.gz",
        "evaluation__datasets__mmlu_stem__test.jsonl.gz",
    },
    "cmath_dev": {"cmath_dev.jsonl.gz", "distractor.jsonl.gz"},
    "other_benchmarks": {
        "src__data__gsm-hard__test.jsonl.gz",
        "src__data__svamp__test.jsonl.gz",
        "src__data__asdiv__test.jsonl.gz",
        "src__data__mawps__test.jsonl.gz",
    },
}
MATHCODER_SOURCES = ["mathcoder/mathematics", "mathcoder/simuleq"]


def load_tool():
    path = Path(__file__).parents[2] / "tools" / "held_out_questions.py"
    spec = importlib.util.spec_from_file_location("held_out_questions", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch) -> list[str]:
    """Questions that the list is made to hold."""
    questions = [f"Question {number}?" for number in range(40)]
    known = dict.fromkeys(map(fingerprint, questions), "bench")
    monkeypatch.setattr(held_out, "held_out_questions", lambda: known)
    return questions


def records(questions):
    return [{"question": question, "answer": "a"} for question in questions]


def refuse(path: Path, **options) -> None:
    refuse_benchmark(make_reader("jsonl", options=options), path, "sources.3")


def test_the_list_names_every_benchmark():
    tool = load_tool()
    assert {name: set(files) for name, files in tool.BENCHMARKS.items()} == NEVER_TRAINED_ON
    committed = orjson.loads(held_out.HELD_OUT_PATH.read_bytes())
    assert set(committed) == set(NEVER_TRAINED_ON)
    assert len(held_out_questions()) == sum(len("".join(v)) // 8 for v in committed.values())


def test_the_committed_fingerprints_are_those_of_the_published_files(shared_folder: Path):
    made = load_tool().held_out(shared_folder / "data")
    assert made == orjson.loads(held_out.HELD_OUT_PATH.read_bytes())


@pytest.mark.parametrize("form", ["lines", "list", "gz", "shuffled"])
def test_a_benchmark_is_refused_whatever_its_form(tmp_path: Path, benchmark, form):
    rows = records(benchmark)
    if form == "shuffled":
        random.Random(0).shuffle(rows)
    lines = b"\n".join(map(orjson.dumps, rows))
    path = tmp_path / "train.jsonl"
    path.write_bytes({"list": orjson.dumps(rows), "gz": gzip.compress(lines)}.get(form, lines))
    with pytest.raises(
        DsmError,
        match=r"train\.jsonl: is never trained on: 40 of its first 40 .* bench \(sources\.3\)",
    ):
        refuse(path)


def test_white_space_case_and_sentence_marks_hide_nothing(write_records, benchmark):
    path = write_records(*records(f"\n {q.upper().rstrip('?')},  . " for q in benchmark))
    with pytest.raises(DsmError, match="never trained on"):
        refuse(path)


@pytest.mark.parametrize(("num_shared", "refused"), [(15, False), (16, True)])
def test_a_training_set_may_share_some_questions(write_records, benchmark, num_shared, refused):
    own = [f"Other {number}?" for number in range(64 - num_shared)]
    path = write_records(*records([*own, *benchmark[:num_shared], *benchmark]))
    if refused:
        with pytest.raises(DsmError, match="16 of its first 64 questions"):
            refuse(path)
    else:
        refuse(path)


def test_rows_that_are_no_examples_do_not_hide_a_benchmark(write_records, benchmark):
    path = write_records(*[b"damage"] * 20, *records(benchmark[:1]))
    with pytest.raises(DsmError, match="1 of its first 1 questions"):
        refuse(path)


def test_preprocessing_refuses_before_it_writes(tmp_path: Path, write_records, benchmark):
    tokenizer = tmp_path / "tokenizer.model"
    texts = ["What is 1 + 2?", "abcdefghijklmnopqrstuvwxyz"]
    train_sentencepiece(texts, path=tokenizer, vocab_size=60, symbols=[])
    recipe = PreprocessRecipe(
        output=tmp_path / "out" / "train",
        tokenizer=tokenizer,
        sources=[SourceRecipe(reader="jsonl", path=write_records(*records(benchmark)))],
    )
    with pytest.raises(DsmError, match="never trained on"):
        preprocess(recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "reader", "options"),
    [
        ("gsm8k/test.jsonl.gz", "gsm8k", {}),
        ("math/test.jsonl.gz", "math", {}),
        ("math500/test.jsonl.gz", "math", {}),
        ("math_test_tora/test.jsonl.gz", "math", {}),
        ("deepseek_math_eval/evaluation__datasets__gsm8k__test.jsonl.gz", "jsonl", {}),
        (
            "deepseek_math_eval/evaluation__datasets__cmath__test.jsonl.gz",
            "jsonl",
            {"solution_key": "golden"},
        ),
        (
            "other_benchmarks/src__data__gsm-hard__test.jsonl.gz",
            "jsonl",
            {"question_key": "input", "program_key": "code"},
        ),
        ("pot_codex/pot.jsonl.gz", "jsonl", {"program_key": "program"}),  # answers to SVAMP
        ("tir_mathcoder/tir.jsonl.gz", "mathcoder", {}),  # in part answers to SVAMP
    ],
)
def test_the_published_benchmarks_are_refused(shared_folder: Path, file, reader, options):
    with pytest.raises(DsmError, match="never trained on"):
        refuse_benchmark(
            make_reader(reader, options=options), shared_folder / "data" / file, "sources.0"
        )


@pytest.mark.parametrize(
    ("file", "reader", "options"),
    [
        ("gsm8k/train.jsonl.gz", "gsm8k", {}),
        ("math/train.jsonl.gz", "math", {}),
        ("tal_scq5k/ch_single_choice_train_3K.jsonl.gz", "tal_scq5k", {}),
        ("tal_scq5k/en_single_choice_train_3K.jsonl.gz", "tal_scq5k", {}),
        ("ape210k/valid.ape.json.gz", "ape210k", {}),
        ("ape210k/test.ape.json.gz", "ape210k", {}),
        ("math23k/math23k_test.json.gz", "math23k", {}),
        ("tora_examples/examples.jsonl.gz", "tora", {}),
        ("tir_mathcoder/tir.jsonl.gz", "mathcoder", {"sources": MATHCODER_SOURCES}),
    ],
)
def test_the_published_training_sets_are_not_refused(shared_folder: Path, file, reader, options):
    refuse_benchmark(
        make_reader(reader, options=options), shared_folder / "data" / file, "sources.0"
    )
