"""tools/sources.yaml: what the catalogue of downloads may say, and what it says."""

import re
import sys
from pathlib import Path

import pytest

from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sources.held_out import refuse_benchmark
from dsm_engine.data.sources.registry import READERS, make_reader
from dsm_engine.errors import DsmError
from dsm_engine.recipes import load_recipe
from tests.download_server import a_source, catalogue_of

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
try:
    import download_sources as tool
    import held_out_questions
finally:
    sys.path.remove(str(REPOSITORY / "tools"))


@pytest.mark.parametrize("key", ["path", "remote"])
@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "/etc/passwd", "", "a//b", "a/", ".a", "a/.b", "a\\..\\b"]
)
def test_paths_that_leave_the_folder_are_refused(key, path):
    with pytest.raises(DsmError, match="is not a plain path below the target folder"):
        catalogue_of(a=a_source("https://a.example", **{key: path}))


def test_members_that_leave_the_folder_are_refused():
    with pytest.raises(DsmError, match="is not a plain path"):
        catalogue_of(a=a_source("https://a.example", members={"../a": "x"}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"address": "file:///etc"}, "is not an address of http or https"),
        ({"reader": None}, "names its reader"),
        ({"licens": "MIT"}, "did you mean 'licence'"),
        ({"files": []}, "at least 1 item"),
    ],
)
def test_a_source_of_another_shape_is_refused(change, message):
    with pytest.raises(DsmError, match=message):
        catalogue_of(a=a_source("https://a.example") | change)


def test_two_files_at_one_path_are_refused():
    with pytest.raises(DsmError, match=r"two files are to be at a/a\.jsonl"):
        catalogue_of(a=a_source("https://a.example"), b=a_source("https://b.example"))


def test_every_training_source_names_a_reader_and_every_reader_is_one():
    for name, source in tool.load_catalogue().sources.items():
        assert source.reader in READERS or (source.reader is None and source.kind == "benchmark"), (
            name
        )


def test_every_published_address_is_encrypted_and_all_but_one_at_a_fixed_revision():
    moving = []
    for name, source in tool.load_catalogue().sources.items():
        assert source.address.startswith("https://")
        if not re.search(r"/[0-9a-f]{40}$", source.address):
            moving.append(name)
            assert all(file.unverified for file in source.files)
    assert moving == ["mathcoder"]


def test_a_file_without_a_checksum_is_of_the_hub_or_says_what_is_inferred():
    for source in tool.load_catalogue().sources.values():
        for file in source.files:
            on_hub = source.address.startswith("https://huggingface.co/")
            assert file.sha256 or on_hub or file.unverified, file.path


def test_the_default_paths_of_the_recipes_are_what_the_tool_writes():
    written = {
        f"data/sources/{path}": source
        for source in tool.load_catalogue().sources.values()
        for file in source.files
        for path in (file.path, *file.members)
    }
    recipes = sorted((REPOSITORY / "configs" / "data").glob("*.yaml"))
    read = 0
    for recipe in recipes:
        loaded = load_recipe(recipe, [], PreprocessRecipe)
        for source in loaded.sources:
            path = loaded.sources_folder / source.path
            if path.is_relative_to("data/sources"):
                read += 1
                assert written[str(path)].reader == source.reader, recipe
                assert written[str(path)].kind == "training", recipe
        for benchmark in loaded.decontamination.benchmarks if loaded.decontamination else ():
            path = loaded.sources_folder / benchmark.path
            assert written[str(path)].kind == "benchmark", recipe
    assert read >= 22


def test_what_is_never_trained_on_is_a_benchmark():
    """By the checksums of held_out_questions' files, through the names they share."""
    kinds: dict[str, set[str]] = {}
    for source in tool.load_catalogue().sources.values():
        for file in source.files:
            kinds.setdefault(file.path, set()).add(source.kind)
    for folder, files in held_out_questions.BENCHMARKS.items():
        for file in files:
            name = file.removesuffix(".gz")
            path = f"{folder}/{name}"
            if folder == "deepseek_math_eval":
                path = f"{folder}/{name.removeprefix('evaluation__datasets__').replace('__', '/')}"
            elif folder == "other_benchmarks":
                path = f"{name.split('__')[2].replace('-', '_')}/test.jsonl"
            elif folder == "math_test_tora":
                path = "math/test.jsonl"
            assert kinds[path] == {"benchmark"}, path


def test_the_published_files_are_those_of_the_catalogue(shared_folder, tmp_path):
    """The checksums are compared with copies, and what is to be trained on holds no benchmark."""
    catalogue = tool.load_catalogue()
    places = tool.Places(tmp_path, folder=shared_folder / "data")
    lock = tool.Lock(tmp_path)
    num_files = 0
    for source in catalogue.sources.values():
        for file in source.files:
            if file.sha256 is None or file.members:
                continue
            num_files += 1
            tool.obtain_file(source, file, places, lock)
            if source.kind == "training" and source.reader:
                refuse_benchmark(make_reader(source.reader), tmp_path / file.path, file.path)
    assert num_files >= 30
