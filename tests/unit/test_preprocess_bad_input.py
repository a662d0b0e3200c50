"""Preprocessing of bad input: one clear line or the policy asked for, and never half a dataset."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.templates import load_template
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import load_tokenizer, train_sentencepiece
from dsm_engine.errors import DsmError
from dsm_engine.recipes import validate_recipe
from tests import huggingface_models

GOOD = b'{"question": "1 + 1?", "solution": "It is 2."}'
TAL_WITHOUT_ANALYSIS = orjson.dumps(
    {
        "queId": "x",
        "problem": "1 + 1?",
        "answer_option_list": [[{"aoVal": "A", "content": "2"}]],
        "answer_analysis": ["NA"],
        "answer_value": "A",
    }
)
BAD_ROWS = {
    "bad_json": b'{"question": "1 + 1?", "solution": "It is 2."',
    "bad_utf8": b'{"question": "1 + 1?", "solution": "\xff\xfe"}',
    "lone_surrogate": b'{"question": "1 + 1?", "solution": "\\udc00"}',
    "not_an_object": b"[1, 2]",
    "missing_question": b'{"question": "  ", "solution": "It is 2."}',
    "missing_answer": b'{"question": "1 + 1?", "solution": ""}',
    "bad_value": b'{"question": ["1 + 1?"], "solution": "It is 2."}',
    "open_fence": b'{"question": "1 + 1?", "solution": "```python\\nprint(2)"}',
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    texts = ["User: 1 + 1? 2\n\nAssistant: It is 2.", "Please reason step by step, and put your"]
    train_sentencepiece(texts, path=path, vocab_size=60, symbols=["\n"])
    return path


@pytest.fixture(scope="module")
def known_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows all characters of the template and of the good row."""
    path = tmp_path_factory.mktemp("known") / "tokenizer.model"
    template = load_template("deepseekmath")
    texts = [template.prompt("1 + 1?", "en", "cot"), "It is 2."]
    train_sentencepiece(texts, path=path, vocab_size=80, symbols=["\n"])
    return path


def make_recipe(folder: Path, model: Path, *lines: bytes, **values) -> PreprocessRecipe:
    folder.mkdir(exist_ok=True)
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    source = {"reader": "jsonl", "path": path}
    return PreprocessRecipe(
        **{"output": folder / "out" / "train", "tokenizer": model, "sources": [source], **values}
    )


def assert_nothing_written(recipe: PreprocessRecipe) -> None:
    """But for the journal of what is done, which the next run goes on from."""
    folder = recipe.output.parent
    assert not folder.exists() or {file.name for file in folder.iterdir()} <= {"train.parts"}


@pytest.mark.parametrize("cause", BAD_ROWS)
def test_a_bad_row_ends_the_run_with_its_place(tmp_path: Path, model: Path, cause):
    recipe = make_recipe(tmp_path, model, GOOD, b"", BAD_ROWS[cause], GOOD)
    with pytest.raises(DsmError) as caught:
        preprocess(recipe)
    assert str(caught.value).startswith(f"{tmp_path}/in.jsonl:3:{len(GOOD) + 2}: ")
    assert str(caught.value).endswith("; on_error: skip or quarantine goes on without such rows")
    assert "\n" not in str(caught.value)
    assert_nothing_written(recipe)


def test_skipping_counts_bad_rows_by_cause(tmp_path: Path, model: Path):
    recipe = make_recipe(tmp_path, model, GOOD, *BAD_ROWS.values(), GOOD, on_error="skip")
    report = preprocess(recipe)
    total = report.ledger.total
    assert (total.read, total.kept) == (len(BAD_ROWS) + 2, 2)
    assert total.dropped == dict.fromkeys(BAD_ROWS, 1)
    assert TokenizedDataset(report.output).manifest["ledger"]["dropped"] == total.dropped
    assert report.quarantine is None
    assert not list(recipe.output.parent.glob("*quarantine*"))


def test_quarantine_keeps_bad_rows_with_their_reasons(tmp_path: Path, model: Path):
    recipe = make_recipe(tmp_path, model, *BAD_ROWS.values(), GOOD, on_error="quarantine")
    report = preprocess(recipe)
    assert report.quarantine is not None
    assert report.quarantine == recipe.output.parent / "train.quarantine.jsonl"
    entries = [orjson.loads(line) for line in report.quarantine.read_bytes().splitlines()]
    assert [entry["cause"] for entry in entries] == list(BAD_ROWS)
    assert [entry["line"] for entry in entries] == list(range(1, len(BAD_ROWS) + 1))
    assert entries[0]["row"].encode() == BAD_ROWS["bad_json"]
    assert "row_base64" in entries[1]
    assert all(entry["reason"] for entry in entries)
    assert (report.ledger.total.kept, report.num_quarantined) == (1, len(BAD_ROWS))


def test_overlong_rows_that_are_dropped_are_quarantined_too(tmp_path: Path, model: Path):
    long = GOOD.replace(b"It is 2.", b"It is 2. " * 20)
    limit = preprocess(make_recipe(tmp_path, model, GOOD)).num_tokens
    values = {"max_tokens": limit, "overlong": "drop", "on_error": "quarantine"}
    report = preprocess(make_recipe(tmp_path, model, long, GOOD, **values))
    assert report.quarantine is not None
    (entry,) = [orjson.loads(line) for line in report.quarantine.read_bytes().splitlines()]
    assert (entry["cause"], entry["row"].encode()) == ("overlong", long)
    assert report.num_quarantined == report.ledger.total.dropped["overlong"] == 1


def test_a_folder_in_the_place_of_the_quarantine_is_found_before_the_work(
    tmp_path: Path, model: Path
):
    for on_error in ("error", "skip", "quarantine"):
        recipe = make_recipe(tmp_path, model, GOOD, on_error=on_error)
        taken = recipe.output.parent / "train.quarantine.jsonl"
        taken.mkdir(parents=True, exist_ok=True)
        with pytest.raises(DsmError, match=r"train\.quarantine\.jsonl: a folder stands where"):
            preprocess(recipe)
        assert list(recipe.output.parent.iterdir()) == [taken]


def test_characters_without_a_token_are_counted_for_each_source(tmp_path: Path, model: Path):
    odd = GOOD.replace(b"It is 2.", "It ☃ is 2 ☂.".encode())
    report = preprocess(make_recipe(tmp_path, model, GOOD, odd))
    unknown = load_tokenizer(model).unk_id
    ids = TokenizedDataset(report.output).document(1).tolist()
    before = TokenizedDataset(report.output).document(0).tolist().count(unknown)
    assert ids.count(unknown) == before + 2
    assert report.ledger.as_dict()["sources"]["jsonl"]["unknown_tokens"] == 2 * before + 2
    manifest = TokenizedDataset(report.output).manifest
    assert manifest["ledger"]["unknown_tokens"] == 2 * before + 2


def test_the_first_unknown_character_ends_the_run_where_that_is_the_policy(
    tmp_path: Path, known_model: Path
):
    good = make_recipe(tmp_path, known_model, GOOD, on_unknown="error")
    assert preprocess(good).ledger.total.unknown_tokens == 0
    odd = GOOD.replace(b"It is 2.", "It ☃ is 2.".encode())
    recipe = make_recipe(tmp_path / "b", known_model, GOOD, odd, on_unknown="error")
    message = rf"in\.jsonl:2:{len(GOOD) + 1}: the tokenizer has no token for '☃'; on_unknown: count"
    with pytest.raises(DsmError, match=message):
        preprocess(recipe)
    assert_nothing_written(recipe)


@pytest.mark.parametrize("output", ["", ".", "/", "..", "out/..", "a\0b"])
def test_an_output_that_names_no_file_is_one_line_with_its_key(output: str):
    values = {"output": output, "tokenizer": "t", "sources": [{"reader": "jsonl", "path": "x"}]}
    with pytest.raises(DsmError, match=r"^r\.yaml: output: a p") as caught:
        validate_recipe(values, PreprocessRecipe, "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_quarantine_of_an_earlier_run_does_not_outlive_it(tmp_path: Path, model: Path):
    first = preprocess(make_recipe(tmp_path, model, b"{", GOOD, on_error="quarantine"))
    assert first.quarantine is not None
    assert first.quarantine.exists()
    preprocess(make_recipe(tmp_path, model, GOOD))
    assert not first.quarantine.exists()


def test_rows_their_publisher_left_unsolved_are_omitted_under_any_policy(
    tmp_path: Path, model: Path
):
    good = TAL_WITHOUT_ANALYSIS.replace(b'"NA"', b'"It is 2."')
    path = tmp_path / "tal.jsonl"
    path.write_bytes(TAL_WITHOUT_ANALYSIS + b"\n" + good + b"\n")
    sources = [{"reader": "tal_scq5k", "path": path}]
    report = preprocess(make_recipe(tmp_path, model, sources=sources))
    assert report.ledger.as_dict()["sources"]["tal_scq5k"]["dropped"] == {"no_solution": 1}
    report = preprocess(make_recipe(tmp_path, model, sources=sources, on_error="quarantine"))
    assert report.quarantine is not None
    assert report.quarantine.read_bytes() == b""


def test_an_overlong_example_is_an_error_unless_a_policy_is_chosen(tmp_path: Path, model: Path):
    length = preprocess(make_recipe(tmp_path, model, GOOD)).num_tokens
    exact = preprocess(make_recipe(tmp_path, model, GOOD, max_tokens=length))
    assert exact.ledger.total.truncated == 0
    recipe = make_recipe(tmp_path / "b", model, GOOD, max_tokens=length - 1, on_error="skip")
    with pytest.raises(DsmError, match=rf":1:0: {length} tokens, and the limit is {length - 1}"):
        preprocess(recipe)
    assert_nothing_written(recipe)


def test_dropped_overlong_examples_are_counted(tmp_path: Path, model: Path):
    long = GOOD.replace(b"It is 2.", b"It is 2. " * 20)
    limit = preprocess(make_recipe(tmp_path, model, GOOD)).num_tokens
    recipe = make_recipe(tmp_path, model, long, GOOD, max_tokens=limit, overlong="drop")
    total = preprocess(recipe).ledger.total
    assert (total.read, total.kept, total.dropped) == (2, 1, {"overlong": 1})


def test_a_truncated_example_keeps_its_limit_of_tokens_and_loses_its_eos(
    tmp_path: Path, model: Path
):
    whole = preprocess(make_recipe(tmp_path, model, GOOD))
    dataset = TokenizedDataset(whole.output)
    ids, (span,) = dataset.document(0).tolist(), dataset.spans(0).tolist()
    limit = len(ids) - 2
    recipe = make_recipe(tmp_path / "b", model, GOOD, max_tokens=limit, overlong="truncate")
    report = preprocess(recipe)
    dataset = TokenizedDataset(report.output)
    assert dataset.document(0).tolist() == ids[:limit]
    assert dataset.spans(0).tolist() == [[span[0], limit]]
    assert report.ledger.total.truncated == 1


def test_an_example_cut_before_its_answer_has_nothing_to_learn(tmp_path: Path, model: Path):
    values = {"max_tokens": 10, "overlong": "truncate"}
    with pytest.raises(DsmError, match="no answer within 10 tokens"):
        preprocess(make_recipe(tmp_path, model, GOOD, **values))
    recipe = make_recipe(tmp_path, model, GOOD, **values, on_error="skip")
    with pytest.raises(DsmError, match="no example is left of 1 rows: 1 no_supervised_tokens"):
        preprocess(recipe)
    assert_nothing_written(recipe)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\n \n", "no examples")])
def test_an_empty_file_is_an_error_under_any_policy(tmp_path: Path, model: Path, content, message):
    recipe = make_recipe(tmp_path, model, on_error="skip")
    recipe.sources[0].path.write_bytes(content)
    with pytest.raises(DsmError, match=rf"in\.jsonl: .*{message}"):
        preprocess(recipe)
    assert_nothing_written(recipe)


def test_sources_are_checked_before_any_is_read(tmp_path: Path, model: Path):
    good = {"reader": "jsonl", "path": make_recipe(tmp_path, model, GOOD).sources[0].path}
    for bad, message in (
        ({"reader": "jsonl", "path": tmp_path / "none.jsonl"}, r"no such file \(sources\.1\)"),
        ({"reader": "jsonl", "path": tmp_path}, r"is a folder; .*\(sources\.1\)"),
        ({"reader": "jsonl", "path": "/dev/null"}, r"is no regular file; .*\(sources\.1\)"),
        ({"reader": "jsonl", "path": "x" * 300}, r"name too long \(sources\.1\)"),
        ({"reader": "jsonl", "path": tmp_path / "in.jsonl" / "x"}, r"Not a directory \(sources"),
        ({**good, "reader": "gsm8"}, "sources.1: unknown reader 'gsm8' .*mean 'gsm8k'"),
        ({**good, "options": {"langage": "en"}}, "unknown key 'langage' .*mean 'language'"),
    ):
        recipe = make_recipe(tmp_path, model, GOOD, sources=[good, bad])
        with pytest.raises(DsmError, match=message):
            preprocess(recipe)
        assert_nothing_written(recipe)


def test_a_failed_run_leaves_the_dataset_before_it_alone(tmp_path: Path, model: Path):
    output = preprocess(make_recipe(tmp_path, model, GOOD)).output
    before = {file.name: file.read_bytes() for file in output.parent.glob("train.*")}
    with pytest.raises(DsmError):
        preprocess(make_recipe(tmp_path, model, GOOD, b"{"))
    left = [file for file in output.parent.glob("train.*") if file.is_file()]
    assert {file.name: file.read_bytes() for file in left} == before


def test_a_null_character_is_a_character(tmp_path: Path, model: Path):
    line = b'{"question": "1\\u0000?", "solution": "2\\u0000."}'
    assert preprocess(make_recipe(tmp_path, model, line)).num_documents == 1


def test_a_misspelt_recipe_key_names_the_nearest():
    values = {"output": "o", "tokenizer": "t", "sources": [{"reader": "jsonl", "pth": "x"}]}
    with pytest.raises(DsmError, match=r"unknown key 'sources\.0\.pth' \(did you mean 'path'\?\)"):
        validate_recipe(values, PreprocessRecipe, "r.yaml")
    with pytest.raises(DsmError, match="overlong: input should be 'error', 'drop' or 'truncate'"):
        validate_recipe({**values, "overlong": "cut"}, PreprocessRecipe, "r.yaml")


def test_lines_of_64_mebibytes_are_bounded(tmp_path: Path, model: Path):
    most = 64 << 20
    fits = GOOD[:-1] + b" " * (most - len(GOOD)) + b"}"
    assert len(fits) == most
    recipe = make_recipe(tmp_path, model, GOOD, fits, fits + b" ", GOOD, on_error="quarantine")
    report = preprocess(recipe, workers=1)
    assert report.ledger.total.kept == 3
    assert report.quarantine is not None
    (entry,) = [orjson.loads(line) for line in report.quarantine.read_bytes().splitlines()]
    assert (entry["line"], entry["cause"]) == (3, "line_too_long")
    assert len(entry["row"]) < most


@pytest.mark.parametrize("depth", [1_000, 1_000_000])
def test_deep_json_is_a_bad_row(tmp_path: Path, model: Path, depth: int):
    deep = b'{"question": ' + b"[" * depth + b"]" * depth + b"}"
    report = preprocess(make_recipe(tmp_path, model, GOOD, deep, on_error="skip"))
    (cause,) = report.ledger.total.dropped
    assert cause in ("bad_json", "bad_value")
    assert report.ledger.total.kept == 1


@pytest.mark.parametrize("wrong", [-1, 60])
def test_ids_outside_the_vocabulary_are_never_written(
    tmp_path: Path, model: Path, monkeypatch, wrong: int
):
    from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    encode = SentencePieceTokenizer.encode_flat

    def encode_wrongly(self, texts, **options):
        ids, offsets = encode(self, texts, **options)
        return np.append(ids[:-1], wrong) if len(ids) else ids, offsets

    monkeypatch.setattr(SentencePieceTokenizer, "encode_flat", encode_wrongly)
    recipe = make_recipe(tmp_path, model, GOOD)
    with pytest.raises(DsmError, match=r"gives token ids .*, and its vocabulary is 0 to 59"):
        preprocess(recipe, workers=1)
    assert_nothing_written(recipe)


def test_a_character_the_tokenizer_would_drop_is_a_bad_row(tmp_path: Path):
    tokenizer = huggingface_models.without_bytes(tmp_path / "tokenizer.json", b"\x13")
    lossy = orjson.dumps({"question": "1 + 1?", "solution": "It \x13 is 2."})
    recipe = make_recipe(tmp_path, tokenizer, GOOD, lossy, GOOD, on_error="quarantine")
    report = preprocess(recipe, workers=1)
    assert report.ledger.total.dropped == {"character_lost": 1}
    assert report.quarantine is not None
    (entry,) = [orjson.loads(line) for line in report.quarantine.read_bytes().splitlines()]
    assert (entry["line"], "'\\x13'" in entry["reason"]) == (2, True)
