"""What is remembered of a tokenizer.json: the same ids with it and without, and never an error."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import tokenizers

from dsm_engine.data.tokenizers import known_facts
from dsm_engine.data.tokenizers.flat_ids import lists_of_ids
from dsm_engine.data.tokenizers.huggingface_fast import FastEncoder
from dsm_engine.data.tokenizers.huggingface_library import HuggingFaceLibrary
from dsm_engine.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from tests.huggingface_models import PIPELINES, SENTENCES, bpe, unigram

pytest.importorskip("fastokens")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """Where the facts of this test are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dsm_engine" / "tokenizers"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bpe(tmp_path / "tokenizer.json", "byte_level")


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """The files that the tokenizers library loaded since."""
    loaded: list[Path] = []
    load = HuggingFaceLibrary.__init__

    def counted(self, path: Path, data: bytes) -> None:
        loaded.append(path)
        load(self, path, data)

    monkeypatch.setattr(HuggingFaceLibrary, "__init__", counted)
    return loaded


def start(path: Path) -> tuple[str, list[list[int]]]:
    """What encodes, and the ids."""
    tokenizer = HuggingFaceTokenizer(path, bulk=True)
    ids = lists_of_ids(*tokenizer.encode_flat(SENTENCES, threads=2))
    return tokenizer.encoder, ids


def facts_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def everything(tokenizer: HuggingFaceTokenizer) -> list[object]:
    names = (
        *("vocab_size", "num_tokens", "unk_id", "begins_after_control", "controls", "bos_id"),
        *("eos_id", "control_strings", "fingerprint", "encoder", "encoder_reason"),
    )
    return [tokenizer.template(), *(getattr(tokenizer, name) for name in names)]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_second_start_knows_what_the_first_found_out(tmp_path: Path, pipeline: str) -> None:
    path = bpe(tmp_path / "tokenizer.json", pipeline)
    first, second = (HuggingFaceTokenizer(path, bulk=True) for _ in range(2))
    unremembered = HuggingFaceTokenizer(path)
    assert everything(first) == everything(second) == everything(unremembered)
    third = HuggingFaceTokenizer(path, bulk=True)
    assert everything(third) == everything(first)
    for continuation in (False, True):
        expected = unremembered._library.encode(SENTENCES, continuation=continuation)
        for _ in range(2):
            tokenizer = HuggingFaceTokenizer(path, bulk=True)
            ids = tokenizer.encode_flat(SENTENCES, continuation=continuation)
            assert lists_of_ids(*ids) == expected
            decoded = [tokenizer.decode(one, continuation=continuation) for one in expected]
            assert decoded == [
                unremembered.decode(one, continuation=continuation) for one in expected
            ]


def test_the_second_start_does_not_load_the_library(model: Path, loads) -> None:
    first = start(model)
    assert (first[0], loads) == ("fastokens", [model])
    assert start(model) == first
    assert loads == [model]


def test_the_second_start_does_not_import_the_library(model: Path) -> None:
    expected = start(model)[1]
    program = (
        "import sys; from pathlib import Path\n"
        "from dsm_engine.data.tokenizers import load_tokenizer\n"
        "tokenizer = load_tokenizer(Path(sys.argv[1]), bulk=True)\n"
        f"print(tokenizer.encode_batch({SENTENCES!r}))\n"
        "print('tokenizers' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{expected}\nFalse\n"


def test_an_early_load_begins_before_numpy_is_imported() -> None:
    program = (
        "import sys; import dsm_engine.data.tokenizers.early_load; print('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_the_library_is_loaded_when_it_is_asked(model: Path, loads) -> None:
    ids = start(model)[1]
    del loads[:]
    tokenizer = HuggingFaceTokenizer(model, bulk=True)
    assert loads == []
    assert tokenizer.decode(ids[0]) == SENTENCES[0]
    assert [tokenizer.encode(text) for text in SENTENCES] == ids
    controls = tokenizers.Tokenizer.from_file(str(model)).encode("a</s>").ids
    assert tokenizer.encode_with_controls(["a</s>"]) == [controls]
    assert loads == [model]


def test_a_proof_for_beginnings_is_none_for_continuations(tmp_path: Path, loads) -> None:
    path = bpe(tmp_path / "tokenizer.json", "byte_level_prefix")
    start(path)
    proved = []
    for _ in range(2):
        tokenizer = HuggingFaceTokenizer(path, bulk=True)
        proved.append(tokenizer._facts.proved)
        tokenizer.encode_flat(SENTENCES, continuation=True)
    proved.append(HuggingFaceTokenizer(path, bulk=True)._facts.proved)
    assert proved == [(False,), (False, True), (False, True)]


def test_another_file_of_the_same_name_is_asked_about_anew(model: Path, loads) -> None:
    start(model)
    description = orjson.loads(model.read_bytes())
    del description["model"]["merges"][-20:]
    model.write_bytes(orjson.dumps(description))
    expected = [HuggingFaceTokenizer(model).encode(text) for text in SENTENCES]
    del loads[:]
    assert start(model) == ("fastokens", expected)
    assert loads == [model]


@pytest.mark.parametrize("library", ["tokenizers", "fastokens"])
def test_another_version_of_a_library_is_asked_anew(
    model: Path, loads, monkeypatch, library: str
) -> None:
    first = start(model)
    version = known_facts.metadata.version
    monkeypatch.setattr(
        known_facts.metadata,
        "version",
        lambda name: f"{version(name)}.1" if name == library else version(name),
    )
    assert start(model) == first
    assert loads == [model, model]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-100],
        lambda content: b"[1]",
        lambda content: b"\xff" + content,
        lambda content: content.replace(b'"vocab_size": ', b'"vocab_size": 1'),
        lambda content: content.replace(b'"vocab_size"', b'"vocab"'),
        lambda content: content.replace(b'"key": "', b'"key": "0'),
    ],
)
def test_damaged_facts_are_none_and_are_written_again(
    model: Path, cache: Path, loads, damage
) -> None:
    first = start(model)
    file = facts_file(cache)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert start(model) == first
    assert loads == [model, model]
    assert file.read_bytes() == whole


def test_facts_of_another_file_under_this_ones_name_are_none(
    model: Path, cache: Path, tmp_path: Path, loads
) -> None:
    first = start(model)
    mine = facts_file(cache)
    start(bpe(tmp_path / "other.json", "split_and_bytes"))
    (theirs,) = set(cache.iterdir()) - {mine}
    mine.write_bytes(theirs.read_bytes())
    assert start(model) == first
    assert loads.count(model) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    model: Path, tmp_path: Path, loads, monkeypatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert start(model) == start(model)
    assert loads == [model, model]


def test_a_user_without_a_home_is_no_error(model: Path, loads, monkeypatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert start(model) == start(model)
    assert loads == [model, model]


def test_ids_that_differ_are_never_remembered_as_equal(
    model: Path, cache: Path, monkeypatch
) -> None:
    expected = [HuggingFaceTokenizer(model).encode(text) for text in SENTENCES]
    encode = FastEncoder.encode_flat

    def shifted(self, texts, *, threads=1):
        ids, offsets = encode(self, texts, threads=threads)
        return np.where(ids == 70, 71, ids), offsets

    monkeypatch.setattr(FastEncoder, "encode_flat", shifted)
    for _ in range(2):
        assert start(model) == ("library", expected)
    assert not cache.exists()


def test_models_that_fastokens_does_not_cover_leave_nothing(tmp_path: Path, cache: Path) -> None:
    path = unigram(tmp_path / "tokenizer.json")
    assert start(path) == start(path)
    assert start(path)[0] == "library"
    assert not cache.exists()


def test_a_file_replaced_during_an_early_load_is_encoded_as_it_was_read(
    model: Path, tmp_path: Path
) -> None:
    first = start(model)
    tokenizer = HuggingFaceTokenizer(model, bulk=True)
    other = bpe(tmp_path / "other.json", "split_and_bytes")
    other.replace(model)
    assert tokenizer.encoder == "fastokens"
    assert lists_of_ids(*tokenizer.encode_flat(SENTENCES)) == first[1]


def test_two_processes_at_once_leave_whole_facts(model: Path, cache: Path, loads) -> None:
    context = multiprocessing.get_context("fork")
    expected = HuggingFaceTokenizer(model).encode_batch(SENTENCES)

    def work() -> None:
        os._exit(0 if start(model) == ("fastokens", expected) else 1)

    workers = [context.Process(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    facts_file(cache)
    del loads[:]
    assert start(model) == ("fastokens", expected)
    assert loads == []


def test_nothing_is_remembered_without_bulk(model: Path, cache: Path) -> None:
    tokenizer = HuggingFaceTokenizer(model)
    assert tokenizer.encoder == "fastokens"
    tokenizer.encode_flat(SENTENCES)
    assert not cache.exists()
