"""The quality steps in the pipeline: what they find is counted, kept aside and never trained on."""

from pathlib import Path

import orjson
import pytest

from dsm_engine.data.preparation import blocks
from dsm_engine.data.preparation.parts_folder import PartsFolder, Shard
from dsm_engine.data.preprocess import (
    PreprocessReport,
    count_examples,
    merge_shards,
    preprocess,
    preprocess_shard,
)
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.sandbox import sandbox_status
from tests.preprocessing import files_of, recipe_of

needs_sandbox = pytest.mark.skipif(
    not sandbox_status().available, reason=f"no sandbox: {sandbox_status().reason}"
)


def pot(question: str, printed: str, answer: str = "") -> dict:
    return {
        "question": question,
        "solution": f"```python\nprint({printed})\n```",
        "answer": answer or str(eval(printed)),
    }


def write(path: Path, *records: dict) -> Path:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


def quarantined(report: PreprocessReport) -> list[dict]:
    assert report.quarantine is not None
    return [orjson.loads(line) for line in report.quarantine.read_bytes().splitlines()]


@pytest.fixture
def programs(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    path = write(
        tmp_path / "a.jsonl",
        pot("1 + 1?", "1 + 1"),
        pot("1 + 2?", "1 + 2", answer="4"),
        {"question": "2 + 2?", "solution": "It is 4.", "answer": "4"},
        pot("1 / 0?", "1 + 1") | {"solution": "```python\nprint(1 / 0)\n```"},
    )
    verification = {"cache": tmp_path / "cache.sqlite"}
    return recipe_of(tmp_path / "out" / "train", small_model, path, verification=verification)


@needs_sandbox
@pytest.mark.parametrize("workers", [1, 2])
def test_programs_that_do_not_hold_are_quarantined_under_any_policy(
    programs: PreprocessRecipe, workers: int
):
    report = preprocess(programs, workers=workers)
    total = report.ledger.total
    assert (total.read, total.kept) == (4, 2)
    assert total.dropped == {"answer_mismatch": 1, "program_failed": 1}
    entries = quarantined(report)
    assert [(entry["line"], entry["cause"]) for entry in entries] == [
        (2, "answer_mismatch"),
        (4, "program_failed"),
    ]
    assert orjson.loads(entries[0]["row"])["question"] == "1 + 2?"
    assert report.phase_s["verification"] > 0


@needs_sandbox
def test_a_source_may_leave_its_programs_unrun(programs: PreprocessRecipe):
    source = programs.sources[0].model_copy(update={"verify": False})
    report = preprocess(programs.model_copy(update={"sources": [source]}))
    assert report.ledger.total.kept == 4


@needs_sandbox
def test_results_are_kept_for_the_next_run(programs: PreprocessRecipe, monkeypatch):
    preprocess(programs, workers=1)
    expected = files_of(programs.output)
    monkeypatch.setattr("dsm_engine.sandbox.Sandbox.run", lambda self, programs: 1 / 0)
    preprocess(programs, workers=1)
    assert files_of(programs.output) == expected


def test_without_a_sandbox_verification_is_refused_at_the_start(
    programs: PreprocessRecipe, monkeypatch
):
    monkeypatch.setattr("dsm_engine.sandbox.commands.find_bwrap", lambda: None)
    monkeypatch.setattr("dsm_engine.sandbox.sandbox.find_bwrap", lambda: None, raising=False)
    with pytest.raises(DsmError, match=r"programs cannot be run: .*apt-get install bubblewrap"):
        preprocess(programs)
    assert files_of(programs.output) == {}


def test_programs_run_without_a_sandbox_when_that_is_asked_for_by_name(programs: PreprocessRecipe):
    report = preprocess(programs, workers=1, unsafe_exec=True)
    assert report.ledger.total.dropped == {"answer_mismatch": 1, "program_failed": 1}
    assert files_of(programs.output)


def test_a_dry_run_counts_and_writes_nothing(programs: PreprocessRecipe):
    source = programs.sources[0].model_copy(update={"cap": 3, "formats": ["pot"]})
    counts = count_examples(programs.model_copy(update={"sources": [source]}), workers=1)
    (share,) = [share for _, share in counts.shares]
    assert (share.available, share.documents) == (3, 3)
    assert counts.columns == {"language": [("en", 3)], "format": [("pot", 3)]}
    assert counts.ledger.total.dropped == {"format_not_chosen": 1}
    assert len(counts.left_out) == 2
    assert not programs.output.parent.exists()


def benchmark(tmp_path: Path, *questions: str) -> dict:
    path = write(tmp_path / "benchmark.jsonl", *({"question": text} for text in questions))
    return {"benchmarks": [{"name": "exam", "path": path, "language": "en"}]}


LONG = "How many apples are left when Tom eats three of his seven red apples today?"


@pytest.fixture
def contaminated(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    records = [
        {"question": f"{LONG} Say why.", "solution": "It is 4."},
        {"question": "What is the sum of one and two?", "solution": "It is 3."},
    ]
    path = write(tmp_path / "a.jsonl", *records)
    return recipe_of(
        tmp_path / "out" / "train",
        small_model,
        path,
        decontamination=benchmark(
            tmp_path, "Another question of more than ten words, is it?", LONG
        ),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_examples_with_benchmark_text_are_removed_and_told(
    contaminated: PreprocessRecipe, workers: int
):
    report = preprocess(contaminated, workers=workers)
    assert report.ledger.total.dropped == {"contaminated": 1}
    (entry,) = quarantined(report)
    assert (entry["line"], entry["cause"]) == (1, "contaminated")
    assert "exam" in entry["reason"]
    row = {"benchmark": "exam", "source": "a", "removed": 1, "reported": 0, "benchmark_items": 1}
    assert report.contamination == [row]
    assert TokenizedDataset(report.output).manifest["contamination"] == [row]


def test_a_source_may_keep_them_and_have_them_reported(contaminated: PreprocessRecipe):
    source = contaminated.sources[0].model_copy(update={"decontaminate": "report"})
    report = preprocess(contaminated.model_copy(update={"sources": [source]}))
    total = report.ledger.total
    assert (total.kept, total.contaminated_kept, total.dropped) == (2, 1, {})
    assert [(row["removed"], row["reported"]) for row in report.contamination] == [(0, 1)]
    assert quarantined(report) == []


def test_official_training_splits_are_reported_unless_the_recipe_says_otherwise(
    contaminated: PreprocessRecipe, tmp_path: Path
):
    path = write(tmp_path / "g.jsonl", {"question": LONG, "answer": "7 - 3 = 4\n#### 4"})
    source = contaminated.sources[0].model_copy(update={"reader": "gsm8k", "path": path})
    both = [contaminated.sources[0], source]
    report = preprocess(contaminated.model_copy(update={"sources": both}))
    assert report.ledger.total.contaminated_kept == 1
    strict = source.model_copy(update={"decontaminate": "remove"})
    both = [contaminated.sources[0], strict]
    report = preprocess(contaminated.model_copy(update={"sources": both}))
    assert report.ledger.total.dropped == {"contaminated": 2}


def test_a_source_may_not_be_looked_at(contaminated: PreprocessRecipe):
    source = contaminated.sources[0].model_copy(update={"decontaminate": "off"})
    report = preprocess(contaminated.model_copy(update={"sources": [source]}))
    assert (report.ledger.total.kept, report.contamination) == (2, [])


@pytest.fixture
def repeated(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    text = " ".join(f"Then {name} buys some more of them." for name in (*"ABCDEFGHIJKLMNOP", "now"))
    first = [
        {"question": "How many apples has he got, 3 or 5 of them?", "solution": text},
        {"question": "How many apples has he got,  3 or 5 of THEM?", "solution": text},
        {"question": "How many apples has he got, 3 or 6 of them?", "solution": text},
    ]
    near = dict(first[0], solution=text.replace("now", "today"))
    paths = [write(tmp_path / "a.jsonl", *first), write(tmp_path / "b.jsonl", first[0], near)]
    return recipe_of(tmp_path / "out" / "train", small_model, *paths)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("steps", "dropped"),
    [
        ("off", {}),
        ("exact", {"duplicate": 2}),
        ("near", {"duplicate": 2, "near_duplicate": 1}),
    ],
)
def test_the_first_of_examples_that_say_the_same_is_kept(
    repeated: PreprocessRecipe, steps: str, dropped: dict, workers: int, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 150)
    recipe = repeated.model_copy(update={"deduplication": steps})
    report = preprocess(recipe, workers=workers)
    assert report.ledger.total.dropped == dropped
    assert report.ledger.total.kept == 5 - sum(dropped.values())
    dataset = TokenizedDataset(report.output)
    assert dataset.attributes(0).source == "a"


def test_shards_know_each_others_duplicates(repeated: PreprocessRecipe, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 150)
    recipe = repeated.model_copy(update={"deduplication": "near"})
    preprocess(recipe, workers=1)
    expected = files_of(recipe.output)
    for path in recipe.output.parent.iterdir():
        path.unlink()
    for index in range(3):
        preprocess_shard(recipe, Shard(index=index, count=3), workers=1)
    assert PartsFolder(recipe.output).path.exists()
    merge_shards(recipe.output)
    assert files_of(recipe.output) == expected
