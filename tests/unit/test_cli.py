"""The command line: exit codes, one clear line, no traceback; and the steps of a whole path."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsm_engine.cli import main


def _dsm(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsm_engine.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def _is_one_clear_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    for part in parts:
        assert part in line


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["preprocess", "pack", "train", "convert", "evaluate"])
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"dsm {command} " in capsys.readouterr().out.split("positional arguments")[0]


def test_an_unknown_key_of_a_recipe_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: x\ntokeniser: y\nsources: []\n", encoding="utf-8")
    assert main(["preprocess", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "unknown key 'tokeniser' (did you mean 'tokenizer'?)" in error
    assert str(recipe) in error
    assert error.count("\n") == 1


def test_a_bad_line_ends_preprocessing_with_its_place_and_no_dataset(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (sample_data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    source = tmp_path / "bad.jsonl"
    source.write_text("\n".join([*lines, '{"question": ']) + "\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    values = {
        "output": str(tmp_path / "out" / "data"),
        "tokenizer": str(sample_data / "tokenizer.model"),
        "sources": [{"reader": "examples", "path": str(source)}],
    }
    recipe.write_text(json.dumps(values), encoding="utf-8")
    assert main(["preprocess", str(recipe)]) == 2
    assert f"{source}:4" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["data.parts"]


def test_a_fault_under_torchrun_or_alone_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    _is_one_clear_line(_dsm("train", tmp_path / "no.yaml"), "no.yaml", "cannot be read")
    _is_one_clear_line(_dsm("verify", tmp_path / "none"), "none.manifest.json")
    _is_one_clear_line(_dsm("convert", tmp_path / "none", tmp_path / "out"), "does not exist")


def test_a_dataset_packs_and_verifies_and_a_flipped_byte_is_found(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "train.packs"
    words = ["pack", str(sample_data / "train"), "--capacity", "512", "--output", str(output)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "fill before packing" in printed and "90-100%" in printed
    assert output.exists()

    for file in sample_data.glob("train.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["verify", str(tmp_path / "train")]) == 0
    damaged = bytearray((tmp_path / "train.bin").read_bytes())
    damaged[100] ^= 1
    (tmp_path / "train.bin").write_bytes(damaged)
    assert main(["verify", str(tmp_path / "train")]) == 2
    assert "train.bin: is damaged" in capsys.readouterr().err


def test_inspect_marks_what_is_trained_on(
    sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(sample_data / "train"), "1"]) == 0
    printed = capsys.readouterr().out
    assert "User:" in printed and "Assistant:" in printed and "</s>" in printed


def test_overrides_may_stand_behind_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}", encoding="utf-8")
    assert main(["train", str(recipe), "seed=1", "--resume", "training.stepz=7"]) == 2
    assert "unknown key 'training.stepz' (did you mean 'steps'?)" in capsys.readouterr().err
    for wrong in (["--resumee"], ["--resume", "steps"]):
        with pytest.raises(SystemExit) as ended:
            main(["train", str(recipe), *wrong])
        assert ended.value.code == 2


@pytest.mark.parametrize("where", ["file/x", "file", "/proc/x/y", "n" * 300 + "/x", "a\0b/c"])
def test_an_output_that_cannot_be_made_is_one_line(
    where: str, tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    output = str(tmp_path / where)
    assert main(["pack", str(sample_data / "train"), "--capacity", "512", "--output", output]) == 2
    assert main(["quickstart", "--output", output]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


def test_evaluate_says_when_it_replaces_an_earlier_evaluation(tmp_path, monkeypatch, capsys):
    from dsm_engine.evaluation import evaluate as module

    summary = {"benchmarks": {}, "skipped": {}}
    monkeypatch.setattr(module, "evaluate", lambda recipe, progress, unsafe_exec: summary)
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(f"model: m\nbenchmarks: [b.jsonl]\noutput: {tmp_path / 'out'}\n")
    assert main(["evaluate", str(recipe)]) == 0
    assert "replaced" not in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("{}")
    assert main(["evaluate", str(recipe)]) == 0
    assert "replaced the evaluation" in capsys.readouterr().out


def test_unsafe_exec_is_warned_of_and_never_the_default(tmp_path, monkeypatch, capsys):
    from dsm_engine.evaluation import evaluate as module

    asked: list[bool] = []

    def evaluate(recipe, progress, unsafe_exec):
        asked.append(unsafe_exec)
        return {"benchmarks": {}, "skipped": {}}

    monkeypatch.setattr(module, "evaluate", evaluate)
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(f"model: m\nbenchmarks: [b.jsonl]\noutput: {tmp_path / 'out'}\n")
    assert main(["evaluate", str(recipe)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["evaluate", str(recipe), "--unsafe-exec"]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("WARNING: --unsafe-exec") and warning.count("\n") == 1
    assert asked == [False, True]
