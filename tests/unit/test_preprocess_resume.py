"""Killed at any moment and started again, preprocessing finishes with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsm_engine.data.preparation import blocks, parts_folder
from dsm_engine.data.preparation.part import read_part
from dsm_engine.data.preparation.parts_folder import PartsFolder
from dsm_engine.data.preparation.plan import RECIPE_OF_PARTS, SOURCE_OF_PARTS, read_plan
from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.errors import DsmError
from tests.preprocessing import command, files_of, recipe_of, run, write_rows


@pytest.fixture
def recipe(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    paths = [write_rows(tmp_path / f"{name}.jsonl", 150) for name in "ab"]
    return recipe_of(tmp_path / "out" / "train", small_model, *paths)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)


def num_parts(recipe: PreprocessRecipe) -> int:
    folder = PartsFolder(recipe.output).path
    return len(list(folder.glob("*.part"))) if folder.exists() else 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on_and_writes_the_same_bytes(recipe: PreprocessRecipe, workers: str):
    assert run(recipe, "--workers", "1", block_bytes=300).returncode == 0
    expected = files_of(recipe.output)
    for file in recipe.output.parent.iterdir():
        file.unlink()
    resumed = []
    for wanted in (1, 20, 60):
        process = subprocess.Popen(
            command(recipe, "--workers", workers, block_bytes=300),
            stdout=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and num_parts(recipe) < wanted:
            time.sleep(0.001)
        process.kill()
        output = process.communicate()[0]
        if process.returncode == 0:
            resumed.append(output)
    last = run(recipe, "--workers", workers, block_bytes=300)
    assert last.returncode == 0, last.stderr
    assert files_of(recipe.output) == expected
    assert any("blocks were done before" in text for text in [*resumed, last.stdout])
    assert sorted(path.name for path in recipe.output.parent.iterdir()) == sorted(expected)


def test_workers_end_with_a_killed_parent(recipe: PreprocessRecipe):
    process = subprocess.Popen(command(recipe, "--workers", "3", block_bytes=300))
    while process.poll() is None and num_parts(recipe) < 2:
        time.sleep(0.001)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = children.read_text().split() if process.poll() is None else []
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_is_killed_is_an_error_and_its_work_is_done_by_the_next_run(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch: pytest.MonkeyPatch
):
    write = PartsFolder.write

    def die(self: PartsFolder, part) -> None:
        if part.counts.block == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, part)

    monkeypatch.setattr(PartsFolder, "write", die)
    with pytest.raises(
        DsmError, match=r"a worker process was ended by SIGKILL \(out of memory\?\)"
    ):
        preprocess(recipe, workers=2)
    monkeypatch.setattr(PartsFolder, "write", write)
    report = preprocess(recipe, workers=2)
    assert report.num_documents == 300
    assert report.num_resumed >= 3


def test_a_fault_of_the_engine_in_a_worker_shows_its_traceback(
    recipe: PreprocessRecipe, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: PartsFolder, part) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(PartsFolder, "write", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        preprocess(recipe, workers=2)


def stopped_after(recipe: PreprocessRecipe, block: int, monkeypatch) -> None:
    """Runs until this block's part stands."""
    write = PartsFolder.write

    def stop(self: PartsFolder, part) -> None:
        write(self, part)
        if part.counts.block == block:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(recipe, workers=1)


def test_another_policy_or_mixture_uses_the_parts_that_stand(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch
):
    stopped_after(recipe, 4, monkeypatch)
    source = recipe.sources[0].model_copy(update={"cap": 10})
    other = recipe.model_copy(
        update={"on_error": "skip", "seed": 3, "sources": [source, recipe.sources[1]]}
    )
    report = preprocess(other, workers=1)
    assert report.num_resumed == 5
    assert report.num_documents == 160


@pytest.mark.parametrize("what", ["input", "tokens"])
def test_parts_of_other_inputs_or_limits_are_made_again(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch, what: str
):
    stopped_after(recipe, 4, monkeypatch)
    if what == "input":
        write_rows(recipe.sources[0].path, 150, first=1000)
    else:
        recipe = recipe.model_copy(update={"max_tokens": 4000})
    assert preprocess(recipe, workers=1).num_resumed == 0


def test_a_torn_part_is_made_again(recipe: PreprocessRecipe, small_blocks: None, monkeypatch):
    stopped_after(recipe, 4, monkeypatch)
    folder = PartsFolder(recipe.output).path
    torn, flipped = folder / "00000001.part", folder / "00000003.part"
    torn.write_bytes(torn.read_bytes()[:-10])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    plan = read_plan(folder / "plan.json")
    with pytest.raises(DsmError, match="is damaged"):
        read_part(flipped, key=plan.parts_key, check=True)
    report = preprocess(recipe, workers=1)
    assert report.num_resumed == 3
    assert report.num_documents == 300


def test_a_second_run_of_the_same_dataset_is_refused(recipe: PreprocessRecipe, monkeypatch):
    def again(self: PartsFolder, part) -> None:
        started = run(recipe, "--workers", "1")
        assert started.returncode == 2
        assert "another process is making this dataset" in started.stderr
        raise KeyboardInterrupt

    monkeypatch.setattr(PartsFolder, "write", again)
    with pytest.raises(KeyboardInterrupt):
        preprocess(recipe, workers=1)


def test_an_input_that_changes_meanwhile_is_an_error(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch
):
    write = PartsFolder.write

    def append(self: PartsFolder, part) -> None:
        write(self, part)
        if part.counts.block == 2:
            write_rows(recipe.sources[0].path, 200)

    monkeypatch.setattr(PartsFolder, "write", append)
    with pytest.raises(DsmError, match=r"a\.jsonl: changed while it was read"):
        preprocess(recipe, workers=1)
    assert files_of(recipe.output) == {}


@pytest.mark.parametrize(("limit", "file"), [(4_000, ".part"), (20_000, "train.bin")])
def test_a_full_disk_leaves_no_file_under_a_final_name(
    recipe: PreprocessRecipe, limit: int, file: str
):
    """A limit on the size of files stands for the disk: first parts fail, then the .bin does."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        + command(recipe, block_bytes=3000)[2]
    )
    failed = subprocess.run(
        [sys.executable, "-c", program, *command(recipe, "--workers", "2")[3:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2, failed.stderr
    assert f"{file}: cannot be written: File too large" in failed.stderr
    assert files_of(recipe.output) == {}
    left = [path.name for path in recipe.output.parent.iterdir()]
    assert left == ["train.parts"]
    assert run(recipe, "--workers", "2").returncode == 0


def test_parts_without_their_plan_are_not_taken_for_those_of_another(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch
):
    stopped_after(recipe, 4, monkeypatch)
    (PartsFolder(recipe.output).path / "plan.json").unlink()
    write_rows(recipe.sources[0].path, 150, first=5000)
    report = preprocess(recipe, workers=1)
    assert report.num_resumed == 0
    expected = files_of(recipe.output)
    preprocess(recipe, workers=1)
    assert files_of(recipe.output) == expected


def test_the_same_files_by_other_paths_use_the_parts_that_stand(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch
):
    stopped_after(recipe, 4, monkeypatch)
    folder = recipe.sources[0].path.parent
    sources = [
        source.model_copy(update={"path": Path(source.path.name)}) for source in recipe.sources
    ]
    other = recipe.model_copy(update={"sources_folder": folder, "sources": sources})
    report = preprocess(other, workers=1)
    assert (report.num_resumed, report.num_discarded) == (5, 0)


def test_what_is_discarded_is_told(recipe: PreprocessRecipe, small_blocks: None, monkeypatch):
    stopped_after(recipe, 4, monkeypatch)
    other = recipe.model_copy(update={"max_tokens": 4000})
    assert preprocess(other, workers=1).num_discarded == 5


def test_every_key_of_a_recipe_is_one_of_its_parts_or_decided_later():
    """A new key is put into one of these, or parts of another value are taken for its own."""
    later = {"on_error", "on_unknown", "mixture", "seed", "output", "sources_folder"}
    by_content = {"tokenizer", "bos_token", "eos_token", "template"}
    otherwise = {"sources", "overlong", "decontamination", "verification"}
    assert set(PreprocessRecipe.model_fields) == {
        *RECIPE_OF_PARTS,
        *later,
        *by_content,
        *otherwise,
    }
    later = {"cap", "epochs", "weight", "path"}
    assert set(SourceRecipe.model_fields) == {*SOURCE_OF_PARTS, *later, "decontaminate", "verify"}


def test_a_file_replaced_by_one_of_its_size_is_noticed(
    recipe: PreprocessRecipe, small_blocks: None, monkeypatch
):
    path = recipe.sources[0].path
    content = path.read_bytes()
    write = PartsFolder.write

    def replace(self: PartsFolder, part) -> None:
        write(self, part)
        if part.counts.block == 1:
            path.write_bytes(content.replace(b"Yes", b"Yep"))

    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "write", replace)
        with pytest.raises(DsmError, match=r"a\.jsonl: changed while it was read"):
            preprocess(recipe, workers=1)
    path.write_bytes(content)
    preprocess(recipe, workers=1)
    once = files_of(recipe.output)
    preprocess(recipe, workers=1)
    assert files_of(recipe.output) == once


def test_a_large_bad_row_is_kept_aside_whole(recipe: PreprocessRecipe):
    path = recipe.sources[0].path
    path.write_bytes(b"\xff" * (20 << 20) + b"\n" + path.read_bytes())
    report = preprocess(recipe.model_copy(update={"on_error": "quarantine"}), workers=1)
    assert report.ledger.total.dropped == {"bad_utf8": 1}
    assert report.quarantine is not None
    assert report.quarantine.stat().st_size > 20 << 20


def test_lines_are_counted_through_blank_ones(recipe: PreprocessRecipe, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 30)
    path = recipe.sources[0].path
    rows = path.read_bytes().splitlines()[:10]
    path.write_bytes(b"\n\n\n\n".join(rows) + b"\n" * 100 + b"no json\n")
    place = 4 * 10 - 3 + 100
    with pytest.raises(DsmError, match=rf"a\.jsonl:{place}:"):
        preprocess(recipe, workers=1)


@pytest.mark.parametrize("workers", [0, -1])
def test_some_workers_are_needed(recipe: PreprocessRecipe, workers: int):
    with pytest.raises(DsmError, match=f"workers: expected at least 1, found {workers}"):
        preprocess(recipe, workers=workers)


def test_a_mixture_of_nothing_is_an_error(recipe: PreprocessRecipe):
    preprocess(recipe, workers=1)
    before = files_of(recipe.output)
    sources = [source.model_copy(update={"epochs": 0.001}) for source in recipe.sources]
    with pytest.raises(DsmError, match="the mixture takes no example: see caps, epochs and"):
        preprocess(recipe.model_copy(update={"sources": sources}), workers=1)
    assert files_of(recipe.output) == before


def test_a_worker_at_work_ends_with_its_parent():
    program = (
        "import os, time\n"
        "from dsm_engine.data.preparation.workers import Workers\n"
        "def work(task):\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
        "with Workers(work, 2) as workers:\n    list(workers.map(iter([1, 2])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [process.stdout.readline().strip() for _ in range(2)]
    assert all(map(is_running, pids))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def test_what_a_run_killed_at_its_removal_left_is_removed(
    recipe: PreprocessRecipe, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parts_folder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            preprocess(recipe, workers=1)
    folder = recipe.output.parent
    assert {path.name for path in folder.iterdir()} > files_of(recipe.output).keys()
    preprocess(recipe, workers=1)
    assert {path.name for path in folder.iterdir()} == files_of(recipe.output).keys()
