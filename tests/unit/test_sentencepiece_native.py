"""The core's encoder of SentencePiece models: the library's ids, or the library itself."""

import gzip
import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from dsm_engine.data.tokenizers import sentencepiece_tokenizer
from dsm_engine.data.tokenizers.sentencepiece_native import compile_model
from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from dsm_engine.errors import DsmError
from tests.sentencepiece_models import CONTROLS, SHAPES, random_text, train_model

TEXTS = [
    "",
    " ",
    "a",
    "  a  b ",
    "\n\n",
    "\0",
    "a\0b",
    "User: \u2581 a",
    "中文☃☃é\U0001f600",
    *CONTROLS,
]

UNIGRAM = {"model_type": "unigram", "hard_vocab_limit": False}


def by_library(tokenizer: SentencePieceTokenizer, texts: list[str]) -> list[list[int]]:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path)).Encode(texts)


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [s for v in values for s in strings(v)] if isinstance(value, (dict, list)) else []


@pytest.fixture(scope="module", params=SHAPES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("shape") / "tokenizer.model"
    return SentencePieceTokenizer(train_model(path, **SHAPES[request.param]))


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("llama") / "tokenizer.model"
    return SentencePieceTokenizer(train_model(path, **SHAPES["bytes_prefix"]))


def test_every_covered_shape_is_encoded_natively_with_the_librarys_ids(tokenizer):
    assert (tokenizer.encoder, tokenizer.encoder_reason) == ("native", None)
    draw = random.Random(0)
    texts = TEXTS + [random_text(draw) for _ in range(3000)]
    assert tokenizer.encode_batch(texts) == by_library(tokenizer, texts)
    assert [tokenizer.encode(text) for text in TEXTS] == by_library(tokenizer, TEXTS)


def test_continuations_are_what_the_library_encodes_behind_a_character(tokenizer):
    draw = random.Random(1)
    texts = TEXTS + [random_text(draw) for _ in range(1000)]
    expected = tokenizer._encode_by_library(texts, continuation=True)
    assert tokenizer.encode_batch(texts, continuation=True) == expected


def test_control_strings_in_text_never_become_control_ids(tokenizer):
    for text in [*CONTROLS, "".join(CONTROLS), " ".join(CONTROLS), "a</s>b\n</s>"]:
        for continuation in (False, True):
            ids = tokenizer.encode(text, continuation=continuation)
            assert not {tokenizer.bos_id, tokenizer.eos_id, 3} & set(ids), text


def test_flat_ids_are_those_of_the_lists_whatever_the_threads(llama_like):
    draw = random.Random(2)
    texts = [random_text(draw) for _ in range(20_000)]  # several parts
    lists = llama_like.encode_batch(texts)
    for threads in (1, 2, 5):
        ids, offsets = llama_like.encode_flat(texts, threads=threads)
        assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
        assert offsets.tolist() == np.cumsum([0, *map(len, lists)]).tolist()
        assert ids.tolist() == [token for one in lists for token in one]


def test_callers_in_several_threads_get_their_own_ids(llama_like):
    draw = random.Random(3)
    texts = [[random_text(draw) for _ in range(500)] for _ in range(4)]
    expected = [by_library(llama_like, part) for part in texts]
    found: dict[int, list[list[list[int]]]] = {}

    def encode(part: int) -> None:
        found[part] = [llama_like.encode_batch(texts[part]) for _ in range(5)]

    callers = [threading.Thread(target=encode, args=(part,)) for part in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(found[part] == [expected[part]] * 5 for part in range(4))


def test_no_texts_are_no_ids(llama_like):
    ids, offsets = llama_like.encode_flat([], threads=2)
    assert (ids.tolist(), offsets.tolist()) == ([], [0])
    assert llama_like.encode_batch([]) == []


@pytest.mark.parametrize("size", [23, 24, 25, 32, 65_536])
@pytest.mark.parametrize("character", ["a", "the", " ", "中", "☃"])
def test_words_of_any_length_have_the_librarys_ids(tokenizer, character: str, size: int):
    text = (character * size)[:size]
    assert tokenizer.encode(text) == by_library(tokenizer, [text])[0]


def test_texts_of_many_units_have_the_librarys_ids(tokenizer):
    draw = random.Random(5)
    texts = ["".join(random_text(draw) for _ in range(400)) for _ in range(8)]
    assert min(map(len, texts)) > 4000
    assert tokenizer.encode_batch(texts) == by_library(tokenizer, texts)


def test_a_long_word_is_not_quadratic(llama_like):
    seconds = []
    for size in (1 << 16, 1 << 20):
        text = "the" * (size // 3)
        begin = time.perf_counter()
        llama_like.encode_flat([text])
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] < 100 * seconds[0]  # 16 times the text; 256 would be quadratic


def test_a_lone_surrogate_is_one_clear_line_on_either_path(llama_like, tmp_path: Path):
    library = SentencePieceTokenizer(train_model(tmp_path / "a.model", **UNIGRAM))
    for tokenizer in (llama_like, library):
        with pytest.raises(DsmError, match=r"cannot encode 'a b\\ud800': it holds a lone surr"):
            tokenizer.encode_batch(["fine", "a b\ud800c"])


def test_what_is_no_text_is_a_type_error(llama_like):
    with pytest.raises(TypeError):
        llama_like.encode_flat(["a", 3])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (UNIGRAM, "a unigram model"),
        ({"model_type": "char", "vocab_size": 60, "hard_vocab_limit": False}, "a char model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "its normaliser is nmt_nfkc"),
        ({"normalization_rule_name": "nfkc_cf"}, "its normaliser is nfkc_cf"),
        ({"remove_extra_whitespaces": True}, "it removes whitespace"),
        ({"treat_whitespace_as_suffix": True}, "it treats whitespace as a suffix"),
        ({"control_symbols": ["|"]}, "its control piece '|' is text at the same time"),
    ],
)
def test_models_that_are_not_covered_go_through_the_library(tmp_path: Path, settings, reason):
    tokenizer = SentencePieceTokenizer(train_model(tmp_path / "a.model", **settings))
    assert (tokenizer.encoder, tokenizer.encoder_reason) == ("library", reason)
    texts = ["Tom has  12 apples", "中文", ""]
    assert tokenizer.encode_batch(texts) == by_library(tokenizer, texts)
    ids, offsets = tokenizer.encode_flat(texts, threads=2)
    assert offsets[-1] == len(ids)
    assert ids[: offsets[1]].tolist() == tokenizer.encode(texts[0])


def test_a_model_with_unused_pieces_goes_through_the_library(llama_like, tmp_path: Path):
    model = sentencepiece_model_pb2.ModelProto.FromString(llama_like.path.read_bytes())
    model.pieces[300].type = model.SentencePiece.UNUSED
    path = tmp_path / "a.model"
    path.write_bytes(model.SerializeToString())
    assert SentencePieceTokenizer(path).encoder_reason == "it has unused pieces"


def test_ids_that_differ_at_start_fall_back_on_the_library_and_say_so(
    llama_like, monkeypatch: pytest.MonkeyPatch
):
    """Scores turned around merge in another order: ids that differ, from a model that compiles."""

    def compile_wrongly(content: bytes):
        model = sentencepiece_model_pb2.ModelProto.FromString(content)
        for piece in model.pieces:
            piece.score = -piece.score
        return compile_model(model.SerializeToString())

    monkeypatch.setattr(sentencepiece_tokenizer, "compile_model", compile_wrongly)
    tokenizer = SentencePieceTokenizer(llama_like.path)
    assert tokenizer.encoder == "library"
    assert tokenizer.encoder_reason is not None
    assert tokenizer.encoder_reason.startswith("native ids of ")
    assert tokenizer.encode_batch(TEXTS) == by_library(tokenizer, TEXTS)


def test_the_quickstarts_model_has_the_librarys_ids(sample_data: Path):
    tokenizer = SentencePieceTokenizer(sample_data / "tokenizer.model")
    assert tokenizer.encoder == "native"
    draw = random.Random(4)
    texts = (sample_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts += [random_text(draw) for _ in range(2000)]
    assert tokenizer.encode_batch(texts) == by_library(tokenizer, texts)


@pytest.mark.parametrize("folder", ["gsm8k", "math", "tal_scq5k", "pot_codex"])
def test_the_published_sets_have_the_librarys_ids(shared_folder: Path, llama_like, folder: str):
    texts: list[str] = []
    for path in sorted((shared_folder / "data" / folder).glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [text for line in lines for text in strings(json.loads(line))]
    assert len(texts) > 1000
    ids, offsets = llama_like.encode_flat(texts, threads=2)
    expected = by_library(llama_like, texts)
    assert np.array_equal(offsets, np.cumsum([0, *map(len, expected)]))
    assert np.array_equal(ids, np.concatenate([np.array(one, np.int32) for one in expected]))
