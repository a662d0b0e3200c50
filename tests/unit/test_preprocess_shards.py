"""Several machines make the parts of one dataset, and it is the one a single run writes."""

import shutil
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.preparation import blocks
from dsm_engine.data.preparation.parts_folder import PartsFolder, Shard
from dsm_engine.data.preprocess import merge_shards, preprocess, preprocess_shard
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.errors import DsmError
from tests.preprocessing import files_of, recipe_of, write_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)


@pytest.fixture
def recipe(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    paths = [write_rows(tmp_path / "a.jsonl", 60), write_rows(tmp_path / "b.jsonl", 30, first=500)]
    with paths[0].open("ab") as file:
        file.write(b"no json\n")
    return recipe_of(tmp_path / "out" / "train", small_model, *paths, on_error="quarantine")


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_shards_and_merge_write_what_one_run_writes(recipe: PreprocessRecipe, num_shards: int):
    preprocess(recipe, workers=1)
    expected = files_of(recipe.output)
    assert "train.quarantine.jsonl" in expected
    shutil.rmtree(recipe.output.parent)
    for index in reversed(range(num_shards)):
        preprocess_shard(recipe, Shard(index=index, count=num_shards), workers=1)
    for source in recipe.sources:
        source.path.unlink()  # merging reads the parts only
    report = merge_shards(recipe.output)
    assert files_of(recipe.output) == expected
    assert report.num_documents == 90
    assert not PartsFolder(recipe.output).path.exists()


def test_merging_names_the_shards_that_are_missing(recipe: PreprocessRecipe):
    for index in (0, 2):
        preprocess_shard(recipe, Shard(index=index, count=4), workers=1)
    with pytest.raises(DsmError, match="shards that have not finished: 1/4, 3/4"):
        merge_shards(recipe.output)
    assert files_of(recipe.output) == {}


def test_merging_without_parts_says_what_makes_them(tmp_path: Path):
    with pytest.raises(DsmError, match=r"no parts there: dsm preprocess --shard I/N makes them"):
        merge_shards(tmp_path / "train")


def test_a_shard_of_another_recipe_is_refused(recipe: PreprocessRecipe):
    preprocess_shard(recipe, Shard(index=0, count=2), workers=1)
    other = recipe.model_copy(update={"max_tokens": 500})
    with pytest.raises(DsmError, match="holds parts of another recipe or of other inputs"):
        preprocess_shard(other, Shard(index=1, count=2), workers=1)


def test_shards_counted_differently_do_not_merge(recipe: PreprocessRecipe):
    preprocess_shard(recipe, Shard(index=0, count=2), workers=1)
    preprocess_shard(recipe, Shard(index=0, count=3), workers=1)
    with pytest.raises(
        DsmError, match=r"has shards of 2 and of 3: remove the shard-\*\.json files of all"
    ):
        merge_shards(recipe.output)


def test_a_bad_row_ends_its_shard_with_its_place_in_the_file(recipe: PreprocessRecipe):
    strict = recipe.model_copy(update={"on_error": "error"})
    place = rf"a\.jsonl:61:{strict.sources[0].path.read_bytes().index(b'no json')}: "
    failed = 0
    for index in range(3):
        try:
            preprocess_shard(strict, Shard(index=index, count=3), workers=1)
        except DsmError as error:
            failed += 1
            with pytest.raises(DsmError, match=place):
                raise error
    assert failed == 1


def test_a_damaged_part_is_not_merged(recipe: PreprocessRecipe):
    preprocess_shard(recipe, Shard(index=0, count=1), workers=1)
    part = sorted(PartsFolder(recipe.output).path.glob("*.part"))[1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(DsmError, match="part 1 is missing or damaged; run its shard again"):
        merge_shards(recipe.output)
    preprocess_shard(recipe, Shard(index=0, count=1), workers=1)
    assert merge_shards(recipe.output).num_documents == 90


@pytest.mark.parametrize("text", ["", "3", "3/3", "-1/3", "a/b", "1/0", "1/2/3", "0x1/2"])
def test_a_shard_is_written_as_i_of_n(text: str):
    with pytest.raises(DsmError, match="write it as I/N"):
        Shard.parse(text)


def test_the_plan_of_the_parts_is_json_for_people_too(recipe: PreprocessRecipe):
    preprocess_shard(recipe, Shard(index=1, count=2), workers=1)
    plan = orjson.loads((PartsFolder(recipe.output).path / "plan.json").read_bytes())
    assert [item["path"] for item in plan["inputs"]] == [str(s.path) for s in recipe.sources]


def test_merging_writes_where_it_is_told_to(recipe: PreprocessRecipe, tmp_path: Path):
    preprocess(recipe, workers=1)
    expected = files_of(recipe.output)
    preprocess_shard(recipe, Shard(), workers=1)
    moved = tmp_path / "moved"
    shutil.move(recipe.output.parent, moved)
    for path in moved.glob("train.*"):
        if path.is_file():
            path.unlink()
    report = merge_shards(moved / "train")
    assert report.output == moved / "train"
    assert files_of(moved / "train") == expected
    assert not recipe.output.parent.exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("plan.json", b"{}"),
        ("plan.json", b"[]"),
        ("plan.json", b'{"recipe": 3}'),
        ("plan.json", b"{"),
        ("shard-0-of-1.json", b"{}"),
        ("shard-0-of-1.json", b'{"blocks": "x"}'),
    ],
)
def test_a_damaged_journal_is_one_clear_line(recipe: PreprocessRecipe, name: str, content: bytes):
    preprocess_shard(recipe, Shard(), workers=1)
    path = PartsFolder(recipe.output).path / name
    path.write_bytes(content)
    with pytest.raises(DsmError, match=name.replace(".", r"\.")) as caught:
        merge_shards(recipe.output)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", ".", "/", "a\0b"])
def test_a_prefix_that_names_nothing_is_one_clear_line(prefix: str):
    with pytest.raises(DsmError, match="names no dataset"):
        merge_shards(Path(prefix))


def test_shards_may_choose_another_policy(recipe: PreprocessRecipe):
    strict = recipe.model_copy(update={"on_error": "error"})
    preprocess_shard(recipe, Shard(index=0, count=2), workers=1)
    other = strict.model_copy(update={"on_error": "skip"})
    preprocess_shard(other, Shard(index=1, count=2), workers=1)
    assert merge_shards(recipe.output).num_documents == 90


def test_a_whole_run_is_refused_while_a_shard_works(recipe: PreprocessRecipe):
    with (
        PartsFolder(recipe.output).locked(shared=True),
        pytest.raises(DsmError, match="another process is making this dataset"),
    ):
        preprocess(recipe, workers=1)
    with PartsFolder(recipe.output).locked(shared=True):
        preprocess_shard(recipe, Shard(), workers=1)
    preprocess(recipe, workers=1)
