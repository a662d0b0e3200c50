"""tools/preprocess_data.py against Megatron's own builder and tokenizers: the same bytes."""

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import sentencepiece
from pyarrow import parquet

from dsm_engine.data import megatron_preprocess
from dsm_engine.data.indexed_dataset import IndexedDataset, optimal_dtype
from dsm_engine.data.megatron_preprocess import MegatronRecipe, preprocess_for_megatron
from dsm_engine.data.sources import line_blocks
from dsm_engine.data.tokenizers import load_tokenizer
from dsm_engine.errors import DsmError
from tests.huggingface_models import bpe, unigram, without_bytes
from tests.sentencepiece_models import SHAPES, random_text, train_model

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TOOL = REPOSITORY / "tools" / "preprocess_data.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    return train_model(path, **SHAPES["bytes_prefix"])


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face")
    bpe(folder / "tokenizer.json", "byte_level")
    return with_config(folder)


def with_config(folder: Path, **more: Any) -> Path:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **more,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def rows(num_rows: int = 60, seed: int = 3) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    texts = [random_text(draw).replace("<s>", "").replace("</s>", "") for _ in range(num_rows)]
    texts = [text.replace("<unk>", "").replace("<pad>", "") for text in texts]
    texts[5] = texts[6] = texts[-1] = ""
    return [{"text": text, "title": text[:7], "n": idx} for idx, text in enumerate(texts)]


def write_rows(path: Path, rows: list[dict[str, Any]], *, ascii_only: bool = False) -> Path:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def as_megatron(
    prefix: Path,
    rows: list[dict[str, Any]],
    *,
    key: str,
    tokenize: Callable[[str], list[int]],
    vocab_size: int,
    eod: int | None,
) -> None:
    """Megatron's Encoder.encode, step for step, and its builder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for row in rows:
        sentences = row[key] if isinstance(row[key], list) else [row[key]]
        ids: list[int] = []
        lengths: list[int] = []
        for sentence in sentences:
            sentence_ids = tokenize(sentence)
            if len(sentence_ids) > 0:
                ids.extend(sentence_ids)
                lengths.append(len(sentence_ids))
        if len(ids) > 0 and eod is not None:
            ids.append(eod)
            lengths[-1] += 1
        builder.add_document(ids, lengths)  # type: ignore[arg-type]  # as Megatron calls it
    builder.finalize(f"{prefix}.idx")


def assert_same_files(prefix: Path, expected: Path) -> None:
    for suffix in (".bin", ".idx"):
        assert Path(f"{prefix}{suffix}").read_bytes() == Path(f"{expected}{suffix}").read_bytes()


def recipe(path: Path, prefix: Path, model: Path, **changes: Any) -> MegatronRecipe:
    kind = "GPTSentencePieceTokenizer" if model.suffix == ".model" else "HuggingFaceTokenizer"
    values = {"input": str(path), "output_prefix": str(prefix), "tokenizer_model": model}
    return MegatronRecipe(**{"tokenizer_type": kind, **values, **changes})


def sentencepiece_reference(model: Path) -> tuple[Callable[[str], list[int]], int, int]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return processor.encode_as_ids, processor.get_piece_size(), processor.eos_id()


def transformers_reference(folder: Path) -> tuple[Callable[[str], list[int]], int, int]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text).input_ids, len(tokenizer), tokenizer.eos_token_id


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_sentencepiece_files_are_megatrons(
    tmp_path: Path, model: Path, append_eod: bool, ascii_only: bool
) -> None:
    documents = rows()
    path = write_rows(tmp_path / "in.jsonl", documents, ascii_only=ascii_only)
    report = preprocess_for_megatron(
        recipe(path, tmp_path / "out", model, json_keys=["text", "title"], append_eod=append_eod)
    )
    tokenize, vocab_size, eos = sentencepiece_reference(model)
    for key in ("text", "title"):
        as_megatron(
            tmp_path / key,
            documents,
            key=key,
            tokenize=tokenize,
            vocab_size=vocab_size,
            eod=eos if append_eod else None,
        )
        assert_same_files(tmp_path / f"out_{key}_document", tmp_path / key)
    assert report.num_documents == len(documents)
    sizes = [(tmp_path / f"{key}.bin").stat().st_size for key in ("text", "title")]
    assert report.num_tokens == sum(sizes) // 2


@pytest.mark.parametrize("append_eod", [False, True])
def test_hugging_face_files_are_megatrons(
    tmp_path: Path, hugging_face: Path, append_eod: bool
) -> None:
    documents = rows()
    path = write_rows(tmp_path / "in.jsonl", documents)
    preprocess_for_megatron(recipe(path, tmp_path / "out", hugging_face, append_eod=append_eod))
    tokenize, vocab_size, eos = transformers_reference(hugging_face)
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=eos if append_eod else None,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")


def test_a_bos_that_only_the_config_asks_for_is_as_in_transformers_5_and_told(
    tmp_path: Path,
) -> None:
    bpe(tmp_path / "tokenizer.json", "byte_level")
    folder = with_config(tmp_path, add_bos_token=True)
    path = write_rows(tmp_path / "in.jsonl", [{"text": "Tom has"}])
    report = preprocess_for_megatron(recipe(path, tmp_path / "out", folder))
    tokenize, _, _ = transformers_reference(folder)
    ids = IndexedDataset(tmp_path / "out_text_document").document(0).tolist()
    assert ids == tokenize("Tom has")
    assert report.note is not None
    assert "asks for [1] before" in report.note


def test_a_template_in_the_tokenizer_json_frames_every_text(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import processors

    path = bpe(tmp_path / "tokenizer.json", "split_and_bytes")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(path))
    documents = [{"text": "one"}, {"text": ""}, {"text": ["two", "", "three"]}, {"text": []}]
    lines = write_rows(tmp_path / "in.jsonl", documents)
    preprocess_for_megatron(recipe(lines, tmp_path / "out", with_config(tmp_path), append_eod=True))
    tokenize, vocab_size, eos = transformers_reference(tmp_path)
    assert tokenize("") == [1, 1, 2]
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=eos,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")
    preprocess_for_megatron(
        recipe(lines, tmp_path / "bare", with_config(tmp_path), special_tokens=False)
    )
    bare = IndexedDataset(tmp_path / "bare_text_document").document(0).tolist()
    assert [1, 1, *bare, 2] == tokenize("one")


def test_control_strings_stay_text_and_are_counted_unless_they_are_to_be_parsed(
    tmp_path: Path, hugging_face: Path
) -> None:
    documents = [{"text": text} for text in ("a</s>b", "plain < text", "<s>", "[INST] x <unk>")]
    path = write_rows(tmp_path / "in.jsonl", documents)
    plain = preprocess_for_megatron(recipe(path, tmp_path / "plain", hugging_face))
    parsed = preprocess_for_megatron(
        recipe(path, tmp_path / "parsed", hugging_face, parse_control_tokens=True)
    )
    assert plain.num_with_controls == parsed.num_with_controls == 3
    tokenize, vocab_size, _ = transformers_reference(hugging_face)
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=None,
    )
    assert_same_files(tmp_path / "parsed_text_document", tmp_path / "expected")
    dataset = IndexedDataset(tmp_path / "plain_text_document")
    assert not {1, 2} & set(dataset.document(0).tolist() + dataset.document(2).tolist())


def test_control_tokens_matched_after_normalisation_are_parsed_as_in_megatron(
    tmp_path: Path,
) -> None:
    import tokenizers
    from tokenizers import normalizers

    path = bpe(tmp_path / "tokenizer.json", "byte_level")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<sep>", normalized=True)])
    tokenizer.save(str(path))
    folder = with_config(tmp_path)
    documents = [{"text": "a\uff1csep\uff1eb"}, {"text": "a<sep>b</s>"}, {"text": "plain"}]
    lines = write_rows(tmp_path / "in.jsonl", documents)
    preprocess_for_megatron(recipe(lines, tmp_path / "out", folder, parse_control_tokens=True))
    tokenize, vocab_size, _ = transformers_reference(folder)
    assert tokenizer.token_to_id("<sep>") in tokenize(documents[0]["text"])
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=None,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")


def test_added_tokens_that_only_the_config_has_are_refused(tmp_path: Path) -> None:
    bpe(tmp_path / "tokenizer.json", "byte_level")
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    known = {"1": {"content": "<s>"}, "2": {"content": "</s>"}}
    folder = with_config(tmp_path, added_tokens_decoder=known)
    preprocess_for_megatron(recipe(path, tmp_path / "out", folder))
    folder = with_config(tmp_path, added_tokens_decoder={**known, "500": {"content": "<think>"}})
    for load in (
        lambda: preprocess_for_megatron(recipe(path, tmp_path / "out", folder)),
        lambda: load_tokenizer(folder),
    ):
        with pytest.raises(DsmError, match=r"has .<think>. \(id 500\), which is no added token"):
            load()


def test_texts_with_characters_the_model_drops_are_counted(tmp_path: Path) -> None:
    without_bytes(tmp_path / "tokenizer.json", b"\x13")
    folder = with_config(tmp_path, unk_token=None)
    documents = [{"text": "page\x13break"}, {"text": "plain"}, {"text": ["\x13", "a"]}]
    path = write_rows(tmp_path / "in.jsonl", documents)
    report = preprocess_for_megatron(recipe(path, tmp_path / "out", folder))
    assert (report.num_documents, report.num_with_losses) == (3, 2)
    tokenize, vocab_size, _ = transformers_reference(folder)
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=None,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")


def test_documents_of_several_texts_are_several_sequences(tmp_path: Path, model: Path) -> None:
    documents = [
        {"text": ["one", "", "two  "]},
        {"text": []},
        {"text": ["", ""]},
        {"text": "alone"},
        {"text": ["last", ""]},
    ]
    path = write_rows(tmp_path / "in.jsonl", documents)
    preprocess_for_megatron(recipe(path, tmp_path / "out", model, append_eod=True))
    tokenize, vocab_size, eos = sentencepiece_reference(model)
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=eos,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")
    assert IndexedDataset(tmp_path / "out_text_document").num_documents == 5


def test_files_do_not_depend_on_workers_or_blocks(
    tmp_path: Path, model: Path, hugging_face: Path, monkeypatch
) -> None:
    path = write_rows(tmp_path / "in.jsonl", rows(400))
    for tokenizer in (model, hugging_face):
        expected = tmp_path / f"{tokenizer.name}_expected"
        preprocess_for_megatron(recipe(path, expected, tokenizer, append_eod=True))
        for workers, block_bytes in ((1, 100), (2, 1000), (3, 1 << 20)):
            monkeypatch.setattr("dsm_engine.data.sources.line_blocks.BLOCK_BYTES", block_bytes)
            out = tmp_path / f"{tokenizer.name}_{workers}"
            preprocess_for_megatron(recipe(path, out, tokenizer, append_eod=True, workers=workers))
            assert_same_files(Path(f"{out}_text_document"), Path(f"{expected}_text_document"))


def test_a_document_larger_than_many_blocks_is_whole(
    tmp_path: Path, model: Path, monkeypatch
) -> None:
    monkeypatch.setattr("dsm_engine.data.sources.line_blocks.BLOCK_BYTES", 1 << 14)
    long = {"text": "Tom has 12 apples; " * 20_000}
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, long, {"text": "b"}])
    preprocess_for_megatron(recipe(path, tmp_path / "out", model, workers=2))
    tokenize, _, _ = sentencepiece_reference(model)
    dataset = IndexedDataset(tmp_path / "out_text_document")
    assert dataset.document(1).tolist() == tokenize(long["text"])
    assert dataset.document(2).tolist() == tokenize("b")


def test_large_vocabularies_are_int32() -> None:
    assert (optimal_dtype(65499), optimal_dtype(65500)) == (np.uint16, np.int32)


def test_several_files_by_a_pattern_in_sorted_order_compressed_or_not(
    tmp_path: Path, model: Path
) -> None:
    documents = rows(30)
    write_rows(tmp_path / "part_2.jsonl", documents[10:])
    with gzip.open(tmp_path / "part_1.jsonl.gz", "wb") as file:
        file.write(write_rows(tmp_path / "rest", documents[:10]).read_bytes())
    write_rows(tmp_path / "all.jsonl", documents)
    for name, pattern in (("all", "all.jsonl"), ("parts", "part_*")):
        preprocess_for_megatron(recipe(tmp_path / pattern, tmp_path / name, model))
    assert_same_files(tmp_path / "parts_text_document", tmp_path / "all_text_document")


def test_line_ends_blank_lines_marks_and_infinities_do_no_harm(tmp_path: Path, model: Path) -> None:
    write_rows(tmp_path / "plain", [{"text": "a"}, {"text": "b"}, {"text": "c"}])
    odd = b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b", "score": NaN}\n{"text": "c"}'
    (tmp_path / "odd").write_bytes(odd)
    for name in ("plain", "odd"):
        preprocess_for_megatron(recipe(tmp_path / name, tmp_path / f"{name}_out", model))
    assert_same_files(tmp_path / "odd_out_text_document", tmp_path / "plain_out_text_document")


BAD_LINES = {
    "bad_json": b'{"text": "a"',
    "bad_utf8": b'{"text": "\xff"}',
    "missing_key": b'{"txt": "a"}',
    "not_text": b'{"text": 3}',
    "not_an_object": b'["text"]',
    "lone_surrogate": b'{"text": "\\ud800"}',
}


@pytest.mark.parametrize("cause", BAD_LINES)
def test_a_bad_line_ends_the_run_with_its_place_or_is_left_out_and_counted(
    tmp_path: Path, model: Path, cause: str
) -> None:
    good = [b'{"text": "one"}', '{"text": "zwei \u00e9"}'.encode(), b'{"text": "three"}']
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([*good[:2], BAD_LINES[cause], good[2]]))
    place = len(good[0]) + len(good[1]) + 2
    with pytest.raises(DsmError, match=rf"in\.jsonl:3:{place}: .*--on-error skip"):
        preprocess_for_megatron(recipe(path, tmp_path / "out", model))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]
    report = preprocess_for_megatron(recipe(path, tmp_path / "out", model, on_error="skip"))
    assert (report.num_documents, report.skipped) == (3, {cause: 1})
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(good))
    preprocess_for_megatron(recipe(tmp_path / "good.jsonl", tmp_path / "good", model))
    assert_same_files(tmp_path / "out_text_document", tmp_path / "good_text_document")


def test_a_line_too_long_is_left_out_and_the_next_has_its_place(
    tmp_path: Path, model: Path, monkeypatch
) -> None:
    for module in ("sources.line_blocks", "megatron_preprocess"):
        monkeypatch.setattr(f"dsm_engine.data.{module}.MAX_LINE_BYTES", 5000)
    monkeypatch.setattr("dsm_engine.data.sources.line_blocks.BLOCK_BYTES", 1000)
    long = json.dumps({"text": "x" * 20_000}).encode()
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n{"text": 1}\n')
    with pytest.raises(DsmError, match=r":2:14: a line of more than 5000 bytes"):
        preprocess_for_megatron(recipe(path, tmp_path / "out", model))
    report = preprocess_for_megatron(recipe(path, tmp_path / "out", model, on_error="skip"))
    assert report.skipped == {"line_too_long": 1, "not_text": 1}
    assert report.num_documents == 2


@pytest.mark.parametrize("block_bytes", [7, 64, 1000])
def test_lines_have_their_places_whatever_the_blocks(
    tmp_path: Path, monkeypatch, block_bytes: int
) -> None:
    """Against readline: long lines, lines cut off, blank ones, a byte order mark, no last end."""
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(line_blocks, "MAX_LINE_BYTES", 200)
    draw = random.Random(block_bytes)
    content = b"".join(b"x" * draw.choice([0, 1, 5, 150, 201, 900]) + b"\n" for _ in range(80))
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + content + b"last")
    expected, byte = [], 3
    for line, raw in enumerate((content + b"last").splitlines(keepends=True), start=1):
        expected.append((f"{path}:{line}:{byte}", raw.rstrip(b"\n")[:200]))
        byte += len(raw)
    blocks = list(line_blocks.read_line_blocks(path))
    found = [
        (block.place(line_idx), line[:200])
        for block in blocks
        for line_idx, line in enumerate(block.lines)
    ]
    assert found == expected
    assert sum(block.num_bytes for block in blocks) == len(content) + len(b"last")


def test_reading_a_long_line_costs_what_its_bytes_cost(tmp_path: Path, monkeypatch) -> None:
    """A line of 24,576 blocks, each copied once; copying the line for each would take minutes."""
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 1 << 10)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * (24 << 20) + b"\n")
    began = time.process_time()
    (block,) = line_blocks.read_line_blocks(path)
    assert len(block.lines[0]) == 24 << 20
    assert time.process_time() - began < 5


def test_blocks_of_parquet_end_by_their_bytes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 1000)
    texts = [str(idx) * 150 for idx in range(40)]
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path)
    blocks = list(line_blocks.read_line_blocks(path))
    assert [json.loads(line)["text"] for block in blocks for line in block.lines] == texts
    assert len(blocks) > 5
    for block in blocks:
        assert sum(map(len, block.lines[:-1])) < 1000
    places = [block.place(idx) for block in blocks for idx in range(len(block.lines))]
    assert places == [f"{path}:row {number}" for number in range(1, 41)]


def test_what_waits_is_bounded_by_its_bytes(tmp_path: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(line_blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(megatron_preprocess, "_BYTES_AHEAD", 5000)
    read = written = most_waiting = 0
    parse, encode = megatron_preprocess._Run._parse, megatron_preprocess._Run._encode

    def counted_parse(self, block):
        nonlocal read, most_waiting
        most_waiting = max(most_waiting, read - written)
        read += block.num_bytes
        return parse(self, block)

    def slow_encode(self, columns, holding):
        time.sleep(0.005)
        return encode(self, columns, holding)

    def progress(num_documents: int, num_bytes: int) -> None:
        nonlocal written
        written = num_bytes

    monkeypatch.setattr(megatron_preprocess._Run, "_parse", counted_parse)
    monkeypatch.setattr(megatron_preprocess._Run, "_encode", slow_encode)
    path = write_rows(tmp_path / "in.jsonl", [{"text": "Tom has 12 apples"}] * 1000)
    preprocess_for_megatron(recipe(path, tmp_path / "out", model), progress=progress)
    assert written == read == path.stat().st_size
    assert 0 < most_waiting <= 5000


def test_nothing_to_write_is_an_error(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(DsmError, match="no document"):
        preprocess_for_megatron(recipe(tmp_path / "empty.jsonl", tmp_path / "out", model))
    with pytest.raises(DsmError, match="no such file"):
        preprocess_for_megatron(recipe(tmp_path / "none", tmp_path / "out", model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_type": "GPT2BPETokenizer"}, "GPT2BPETokenizer is not supported; these are"),
        ({"tokenizer_type": "LLama2Tokenizer"}, "did you mean 'Llama2Tokenizer'"),
        ({"json_keys": ["text", "text"]}, "'text' stands 2 times"),
        ({"json_keys": ["a/b"]}, "cannot be a part of a file's name"),
        ({"workers": 0}, "at least one"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, model: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(DsmError, match=message):
        preprocess_for_megatron(recipe(path, tmp_path / "out", model, **changes))


def test_a_model_without_a_fast_encoder_gives_megatrons_files_too(tmp_path: Path) -> None:
    unigram(tmp_path / "tokenizer.json")
    documents = rows(40)
    path = write_rows(tmp_path / "in.jsonl", documents)
    report = preprocess_for_megatron(recipe(path, tmp_path / "out", with_config(tmp_path)))
    assert report.encoder.startswith("library (")
    tokenize, vocab_size, _ = transformers_reference(tmp_path)
    as_megatron(
        tmp_path / "expected",
        documents,
        key="text",
        tokenize=tokenize,
        vocab_size=vocab_size,
        eod=None,
    )
    assert_same_files(tmp_path / "out_text_document", tmp_path / "expected")


def tool(*arguments: Any, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_files,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def flags(path: Path, prefix: Path, model: Path) -> list[Any]:
    kind = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    return ["--input", path, "--output-prefix", prefix, *kind]


def test_the_tool_takes_megatrons_flags(tmp_path: Path, model: Path) -> None:
    documents = rows(40)
    path = write_rows(tmp_path / "in.jsonl", documents)
    more = ["--json-keys", "text", "title", "--append-eod", "--workers", 2, "--partitions", 2]
    done = tool(
        *flags(path, tmp_path / "out", model),
        *more,
        *("--log-interval", 10, "--keep-sequential-samples", "--vocab-size", 520),
    )
    assert done.returncode == 0, done.stderr
    assert "40 documents" in done.stdout
    assert "Processed 40 documents" in done.stderr
    expected = recipe(path, tmp_path / "same", model, json_keys=["text", "title"], append_eod=True)
    preprocess_for_megatron(expected)
    for key in ("text", "title"):
        assert_same_files(tmp_path / f"out_{key}_document", tmp_path / f"same_{key}_document")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split-sentences"], "--split-sentences is not supported: texts are not split"),
        (["--apend-eod"], r"--apend-eod is unknown (did you mean '--append-eod'?)"),
        (["--vocab-file=a"], "--vocab-file is not supported: a tokenizer is its"),
        (["--workers", "x"], "argument --workers: invalid int value: 'x'"),
    ],
)
def test_flags_it_does_not_take_are_one_line(
    tmp_path: Path, model: Path, more: list[str], message: str
) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    done = tool(*flags(path, tmp_path / "out", model), *more)
    assert done.returncode == 2
    assert done.stderr.startswith(f"preprocess_data: {message}")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path: Path, model: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", rows(4000))
    folder = tmp_path / "full"
    folder.mkdir()
    done = tool(*flags(path, folder / "out", model), limit=20_000)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_the_input_is_never_overwritten(tmp_path: Path, model: Path) -> None:
    path = write_rows(tmp_path / "a_text_document.bin", [{"text": "a"}])
    content = path.read_bytes()
    with pytest.raises(DsmError, match="is read and would be overwritten"):
        preprocess_for_megatron(recipe(path, tmp_path / "a", model))
    assert path.read_bytes() == content


def test_a_fault_among_the_renames_leaves_no_index(
    tmp_path: Path, model: Path, monkeypatch
) -> None:
    path = write_rows(tmp_path / "in.jsonl", rows())
    replace = Path.replace

    def failing(self, target):
        if target.name == "out_text_document.bin":
            raise OSError("no rename")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(DsmError, match="no rename"):
        preprocess_for_megatron(recipe(path, tmp_path / "out", model, json_keys=["text", "title"]))
    assert not list(tmp_path.glob("*.idx"))


def test_an_interrupted_tool_says_so_in_one_line(tmp_path: Path, model: Path) -> None:
    fifo = tmp_path / "in.jsonl"
    os.mkfifo(fifo)
    command = [sys.executable, TOOL, *flags(fifo, tmp_path / "out", model)]
    with (
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as process,
        fifo.open("wb"),
    ):  # opens when the tool has
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.count("\n")) == (130, 1)


def test_the_tool_starts_without_heavy_packages(tmp_path: Path, model: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[str(TOOL), *map(str, flags(tmp_path / 'in', tmp_path / 'out', model))]}\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
        "heavy = 'torch transformers pydantic rich pyarrow yaml tokenizers'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    write_rows(tmp_path / "in", [{"text": "a"}])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
