"""The commands around a tokenized dataset: preprocess, pack, inspect."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsm_engine.cli import main
from dsm_engine.data.pack_file import load_pack_index, save_pack_index
from dsm_engine.data.pack_index import STRATEGIES, build_pack_index
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter

Captured = pytest.CaptureFixture[str]


def _fails(capsys: Captured, *words: object) -> str:
    """The one line on standard error; nothing is on standard output."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def _recipe(folder: Path, data: Path, *rows: object, **values: object) -> Path:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "output": str(folder / "out" / "rows"),
        "tokenizer": str(data / "tokenizer.model"),
        "sources": [{"reader": "jsonl", "path": str(source)}],
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | values), encoding="utf-8")
    return path


def test_a_recipe_is_all_that_a_command_requires(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["preprocess"])
    assert capsys.readouterr().err.endswith("the following arguments are required: RECIPE\n")


def test_preprocess_says_how_many_rows_are_quarantined_and_tokens_unknown(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    good = {"question": "1 + 1?", "answer": "It is 2."}
    recipe = _recipe(tmp_path, sample_data, good, 5, [], good | {"answer": "It is ☃."})
    assert main(["preprocess", str(recipe), "on_error=quarantine"]) == 0
    printed = capsys.readouterr().out
    assert f"2 rows in {tmp_path}/out/rows.quarantine.jsonl" in printed
    unknown = TokenizedDataset(tmp_path / "out" / "rows").manifest["ledger"]["unknown_tokens"]
    assert (f", {unknown:,} unknown tokens" in printed) == (unknown > 0)


@pytest.mark.parametrize("output", ["", ".", "/", '"a\\0b"'])
def test_an_output_that_names_no_file_is_one_line(
    tmp_path: Path, sample_data: Path, capsys: Captured, output: str
) -> None:
    recipe = _recipe(tmp_path, sample_data, {"question": "q", "answer": "a"})
    assert "output: " in _fails(capsys, "preprocess", recipe, f"output={output}")


def test_pack_says_what_is_wrong_before_it_prints_anything(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    prefix = sample_data / "train"
    assert f"{prefix}: cannot pack: document" in _fails(capsys, "pack", prefix, "--capacity", 8)
    assert "1 or more, found 0" in _fails(capsys, "pack", prefix, "--capacity", 0)
    assert "seed must be" in _fails(capsys, "pack", prefix, "--seed", -1)
    notes = tmp_path / "notes.txt"
    notes.write_text("important")
    assert "is no pack index" in _fails(capsys, "pack", prefix, "--output", notes)
    assert notes.read_text() == "important"
    assert "Is a directory" in _fails(capsys, "pack", prefix, "--output", tmp_path)
    with TokenizedDatasetWriter(tmp_path / "empty", vocab_size=9) as writer:
        writer.finish()
    assert "holds no documents" in _fails(capsys, "pack", tmp_path / "empty")
    assert f"without the ending, {prefix}" in _fails(capsys, "pack", f"{prefix}.bin")


def test_pack_replaces_an_older_pack_index(tmp_path: Path, sample_data: Path) -> None:
    words = ["pack", str(sample_data / "train"), "--output", str(tmp_path / "a.packs")]
    assert main(words) == main(words) == 0


def _supervised(printed: str) -> list[str]:
    return [part.split("⟧")[0] for part in printed.split("⟦")[1:]]


def test_inspect_on_a_pipe_brackets_what_is_trained_on(sample_data: Path, capsys: Captured) -> None:
    from dsm_engine.data.tokenizers import load_tokenizer

    prefix = sample_data / "train"
    dataset, tokenizer = TokenizedDataset(prefix), load_tokenizer(sample_data / "tokenizer.model")
    for document in range(6):
        assert main(["inspect", str(prefix), str(document)]) == 0
        ids, spans = dataset.document(document).tolist(), dataset.spans(document).tolist()
        texts = [tokenizer.decode(ids[begin:end], continuation=True) for begin, end in spans]
        assert _supervised(capsys.readouterr().out) == [*texts[:-1], texts[-1] + "</s>"]


@pytest.mark.parametrize(
    ("variables", "bracketed"),
    [({"FORCE_COLOR": "1"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True)],
)
def test_inspect_brackets_where_there_is_no_color(
    sample_data: Path, capsys: Captured, monkeypatch, variables: dict[str, str], bracketed: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", str(sample_data / "train")]) == 0
    printed = capsys.readouterr().out
    assert ("⟦" in printed) == bracketed
    assert ("\x1b[4;32m" in printed) != bracketed


def test_inspect_prints_escapes_where_the_terminal_has_no_unicode(sample_data: Path) -> None:
    command = [sys.executable, "-m", "dsm_engine.cli", "inspect"]
    for words in ([str(sample_data / "train")], ["--help"]):
        done = subprocess.run(
            [*command, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert "U+27E6" in done.stdout


def test_inspect_names_a_document_with_a_foreign_token(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    for file in sample_data.glob("train.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "train.bin").open("r+b") as tokens:
        tokens.seek(0, io.SEEK_SET)
        tokens.write(b"\xff\xff")
    line = _fails(capsys, "inspect", tmp_path / "train")
    assert "train.bin: is damaged: document 0 has the token id 65535" in line


def test_pack_prints_every_strategy_and_counts_what_is_too_long(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    prefix, output = sample_data / "train", tmp_path / "a.packs"
    words = ["pack", str(prefix), "--output", str(output), "--alignment", "8"]
    assert main([*words, "--capacity", "64", "--overlong", "drop", "--strategy", "balanced"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for strategy in STRATEGIES:
        assert f"{strategy}: " in printed
    packs, lengths = load_pack_index(output), TokenizedDataset(prefix).lengths
    assert (packs.strategy, packs.alignment, packs.overlong) == ("balanced", 8, "drop")
    dropped = int((lengths > 64).sum())
    assert packs.ledger.dropped_documents == dropped > 0
    assert f"too long for a pack: {dropped:,} documents dropped" in printed
    assert main([*words, "--capacity", "8", "--overlong", "drop"]) == 2
    assert "no document is short enough" in capsys.readouterr().err
    assert "multiple of the alignment" in _fails(capsys, "pack", prefix, "--alignment", "7")


def test_verify_checks_a_pack_index(tmp_path: Path, sample_data: Path, capsys: Captured) -> None:
    prefix, path = sample_data / "train", tmp_path / "a.packs"
    assert main(["pack", str(prefix), "--output", str(path)]) == 0
    capsys.readouterr()
    assert main(["verify", str(path), "--dataset", str(prefix)]) == 0
    assert "whole;" in capsys.readouterr().out
    other = sample_data / "validation"
    assert "built for other documents" in _fails(capsys, "verify", path, "--dataset", other)
    assert "is no pack index" in _fails(capsys, "verify", prefix, "--dataset", prefix)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "its checksum differs" in _fails(capsys, "verify", path)


def test_pack_cuts_what_other_strategies_cannot_hold(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    output = tmp_path / "a.packs"
    words = ["pack", str(sample_data / "train"), "--capacity", "32", "--output", str(output)]
    assert main([*words, "--strategy", "concat_split"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "random: cannot pack: document" in printed and "concat_split: " in printed
    assert load_pack_index(output).strategy == "concat_split"
    assert "more than a pack of 32" in _fails(capsys, *words)


def test_verify_finds_a_pack_index_of_no_plan(
    tmp_path: Path, sample_data: Path, capsys: Captured
) -> None:
    lengths = TokenizedDataset(sample_data / "train").lengths
    packs = build_pack_index(lengths, capacity=4096, strategy="random", seed=0)
    twice = packs.documents.copy()
    twice[1] = twice[0]
    save_pack_index(dataclasses.replace(packs, documents=twice), tmp_path / "a.packs")
    assert main(["verify", str(tmp_path / "a.packs")]) == 0
    capsys.readouterr()
    words = ("verify", tmp_path / "a.packs", "--dataset", sample_data / "train")
    assert "the packs are not of one plan" in _fails(capsys, *words)
