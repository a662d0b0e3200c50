"""`dsm verify --isolation`: what it prints, its exit codes, and one clear line for every fault."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsm_engine.cli import main
from dsm_engine.data.packed_batch import NO_LABEL, PackedBatch, PackReader
from dsm_engine.training import isolation
from tests.isolation_faults import FAULTS, run_positions_on


@pytest.fixture
def recipe(tmp_path: Path, sample_data: Path, make_recipe: Any) -> Path:
    return _written(tmp_path, make_recipe(sample_data, tmp_path / "run"))


def _written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def _fails(capsys: pytest.CaptureFixture[str], words: list[object], *parts: str) -> str:
    """Runs the command, which ends with 2 and one line with these parts; returns its output."""
    assert main(["verify", *map(str, words)]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("dsm verify: error: ")
    for part in parts:
        assert part in line
    return printed.out


def _with_fault(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    build = isolation.build_chunks

    def build_with_fault(*arguments: Any, **keywords: Any) -> Any:
        chunks = build(*arguments, **keywords)
        for chunk in chunks:
            fault(chunk)
        return chunks

    monkeypatch.setattr(isolation, "build_chunks", build_with_fault)


def test_both_halves_are_shown_with_what_was_compared(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--isolation", recipe, "model.num_layers=1", "--packs", 1, "--documents", 2]
    assert main(["verify", *map(str, words), "--precision", "both", "data.strategy=best_fit"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    for precision in ("fp32", "bf16"):
        rows = [line.split() for line in lines if f" {precision} " in line]
        assert len(rows) == 6 + 4, "kinds before and after a change, and kinds against unpacked"
        assert all(row[-1] == "0" and int(row[-2].replace(",", "")) > 500 for row in rows[:6])
    assert lines[0] == "attention by split, in torch's deterministic mode"
    assert any(line.startswith("isolation: holds bit for bit; ") for line in lines)
    assert any(line.startswith("packed equals unpacked: holds within rounding; ") for line in lines)
    assert not (recipe.parent / "run").exists(), "nothing is written"


def test_forward_passes_alone_are_said_to_be_alone(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--isolation", recipe, "--packs", 1, "--documents", 1, "--forward-only"]
    assert main(["verify", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "gradients were not compared: forward passes only" in printed
    assert "input gradients" not in printed and "logits" in printed


def test_a_leak_ends_with_one_line_that_names_both_documents(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_fault(monkeypatch, FAULTS["boundaries ignored"])
    words = ["--isolation", recipe, "--packs", 1, "--documents", 2, "--forward-only"]
    printed = _fails(
        capsys,
        words,
        "in fp32: documents are not isolated: other tokens in document",
        " losses of document",
        "by up to",
        "on rank 0 (and",
    )
    assert "isolation: FAILS" in printed and "packed equals unpacked: FAILS" in printed


def test_positions_that_run_on_end_with_one_line_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_fault(monkeypatch, run_positions_on)
    words = ["--isolation", recipe, "--packs", 1, "--documents", 1, "--forward-only"]
    printed = _fails(capsys, words, "packed and unpacked differ by more than rounding: rotated")
    assert "isolation: holds" in printed and "packed equals unpacked: FAILS" in printed


@pytest.mark.parametrize("fault", ["boundary late", "documents merged", "tail merged"])
def test_boundaries_that_the_batch_has_wrong_are_found(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def with_other_ends(batch: PackedBatch) -> None:
        ends = batch.cu_seqlens[: batch.num_documents + 1].tolist()
        if fault == "boundary late":
            ends[1] += 1
        else:
            del ends[1 if fault == "documents merged" else -2]
        batch.cu_seqlens[:] = batch.cu_seqlens[-1]
        batch.cu_seqlens[: len(ends)] = ends
        lengths = np.diff(ends)
        batch.num_documents, batch.max_seqlen = len(lengths), int(lengths.max())
        batch.position_ids[:] = np.concatenate([np.arange(length) for length in lengths])

    _with_reader(monkeypatch, with_other_ends)
    words = ["--isolation", recipe, "--packs", 1, "--forward-only"]
    _fails(capsys, words, "documents are not isolated: cu_seqlens of the batch are not those")


def test_positions_that_the_batch_has_wrong_are_found(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_on(batch: PackedBatch) -> None:
        batch.position_ids[:] = np.arange(len(batch.position_ids))

    _with_reader(monkeypatch, run_on)
    words = ["--isolation", recipe, "--packs", 1, "--forward-only"]
    _fails(capsys, words, "position_ids of the batch are not those of the pack index")


def test_a_pack_without_supervision_shows_nothing_of_gradients(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(batch: PackedBatch) -> None:
        batch.labels[:] = NO_LABEL
        batch.loss_weights[:] = 0.0

    _with_reader(monkeypatch, forget)
    words = ["--isolation", recipe, "--packs", 1, "--documents", 1]
    _fails(capsys, words, "no other document has a loss: nothing is shown")


def _with_reader(monkeypatch: pytest.MonkeyPatch, change: Callable[[PackedBatch], None]) -> None:
    read = PackReader.read

    def read_changed(self: PackReader, pack_idx: int, **options: Any) -> PackedBatch:
        batch = read(self, pack_idx, **options)
        change(batch)
        return batch

    monkeypatch.setattr(PackReader, "read", read_changed)


def test_packs_of_one_document_have_nothing_to_be_isolated_from(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--isolation", recipe, "data.seq_length=16", "data.overlong=truncate"]
    _fails(capsys, words, "every pack of 16 tokens holds one document", "raise data.seq_length")


def test_weights_that_the_run_starts_from_are_used(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--isolation", recipe, f"initialize_from={tmp_path / 'nothing'}"]
    _fails(capsys, words, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--packs", 0], "--packs 0: at least 1 is needed"),
        (["--documents", -1], "--documents -1: at least 1 is needed"),
        (
            ["parallel.tensor_model_parallel_size=2"],
            "world size 1 is not divisible by TP x PP x CP 2",
        ),
        (["parallel.sequence_parallel=true"], "needs tensor_model_parallel_size > 1"),
        (["data.trian=x"], "unknown key 'data.trian' (did you mean 'train'?)"),
        (["data.train=nothing"], "nothing.manifest.json"),
        (["PREFIX"], "PREFIX: --isolation RECIPE takes the dataset from the recipe"),
        (["--dataset", "x"], "--dataset goes with a pack index, not with --isolation"),
    ],
)
def test_faults_of_the_recipe_or_the_options_are_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], words: list[object], part: str
) -> None:
    assert _fails(capsys, ["--isolation", recipe, *words], part) == ""


def test_a_dataset_in_place_of_a_recipe_is_told(
    sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = next(sample_data.glob("*.idx")).with_suffix("")
    _fails(capsys, ["--isolation", prefix], "is a dataset; --isolation takes a training recipe")


def test_a_recipe_without_data_says_so(
    tmp_path: Path, sample_data: Path, make_recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    values = make_recipe(sample_data, tmp_path / "run")
    del values["data"]
    _fails(capsys, ["--isolation", _written(tmp_path, values)], "key 'data' is missing")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "give one PREFIX, or --isolation or --gradients RECIPE (found 0 words)"),
        (["a", "b"], "(found 2 words)"),
        ([Path(__file__).parents[2] / "configs" / "evaluate.yaml"], "is a recipe, no dataset"),
        (["a", "--packs", 0], "--packs goes with --isolation or --gradients RECIPE"),
        (["a", "--forward-only"], "--forward-only goes with --isolation RECIPE"),
    ],
)
def test_without_a_recipe_one_prefix_is_verified(
    capsys: pytest.CaptureFixture[str], words: list[object], part: str
) -> None:
    _fails(capsys, words, part)


def test_help_shows_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "dsm verify data/train" in printed and "dsm verify --isolation" in printed
