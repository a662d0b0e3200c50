"""Recipes: misspelt keys, overrides, inheritance, and YAML that is not what it seems."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from dsm_engine.errors import DsmError
from dsm_engine.recipes import Section, dump_yaml, load_recipe, nearest


class Training(Section):
    lr: float = 1e-3
    steps: int = 10
    dtype: Literal["fp32", "bf16"] = "fp32"


class Source(Section):
    path: str
    weight: float = 1.0


class Recipe(Section):
    name: str
    training: Training = Training()
    sources: tuple[Source, ...] = ()
    seed: int | None = None


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\ntraining:\n  lr: 1e-5\nsources:\n  - path: a\n  - path: b\n")
    return path


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides, Recipe)


def test_a_recipe_has_its_values_and_defaults(recipe_path: Path):
    recipe = load(recipe_path)
    assert (recipe.training.lr, recipe.training.steps) == (1e-5, 10)
    assert [source.path for source in recipe.sources] == ["a", "b"]


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.e-5", "0.1e-4", "+1e-05", "1_0e-6"])
def test_exponents_are_numbers_with_or_without_a_point(tmp_path: Path, number):
    path = tmp_path / "r.yaml"
    path.write_text(f"name: x\ntraining: {{lr: {number}}}\n")
    assert load(path).training.lr == pytest.approx(1e-5)


def test_a_word_with_an_e_stays_a_word(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("name: 1e5x\n")
    assert load(path).name == "1e5x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntrainin: {}\n", r"unknown key 'trainin' \(did you mean 'training'\?\)"),
        ("name: x\ntraining: {lrr: 1}\n", r"unknown key 'training\.lrr' \(did you mean 'lr'\?\)"),
        ("name: x\nsources: [{pat: a}]\n", r"unknown key 'sources\.0\.pat' .*'path'"),
        ("name: x\nqqq: 1\n", r"unknown key 'qqq' \(known: name, seed, sources, training\)"),
        ("seed: 1\n", "key 'name' is missing"),
        ("name: x\ntraining: {steps: many}\n", r"training\.steps: .*\(found 'many'\)"),
        ("name: x\ntraining: {dtype: fp8}\n", r"training\.dtype: .*'fp32' or 'bf16'.*'fp8'"),
        ("name: x\ntraining: 5\n", r"training: .*\(found 5\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(DsmError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("nam: x\nsead: 1\n")
    with pytest.raises(DsmError, match=r"'name' is missing.*'nam'.*'sead'"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y\n", r"r\.yaml:2: .*key 'name' stands twice"),
        ("name: x\ntraining:\n  lr: 1\n  lr: 2\n", r"r\.yaml:4: .*key 'lr' stands twice"),
        ("name: x\n  bad: [\n", r"r\.yaml:\d: is not YAML"),
        ("name: !!python/object/apply:os.system [ls]\n", r"r\.yaml:1: is not YAML"),
        ("name: [x\n", "is not YAML"),
        ("- a\n- b\n", "a recipe is a mapping of keys to values, found list"),
        ("", "a recipe is a mapping of keys to values, found nothing"),
        ("? [a, b]\n: c\n", "is not YAML"),
        ("1: x\n", "keys should be strings"),
        ("name: x\0y\n", "is not YAML"),
        ("extends: [a]\n", "extends names one file"),
        ("extends: r.yaml\n", "extends itself"),
        ("extends: none.yaml\n", r"none\.yaml: cannot be read"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(DsmError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_utf8_is_an_error(tmp_path: Path):
    with pytest.raises(DsmError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(DsmError, match=r"is not UTF-8 \(byte 6\)"):
        load(path)


def test_overrides_are_yaml_values_by_dotted_key(recipe_path: Path):
    recipe = load(recipe_path, "training.lr=2e-5", "sources.1.path=c.jsonl", "seed=7", "name=a=b")
    assert recipe.training.lr == 2e-5
    assert [source.path for source in recipe.sources] == ["a", "c.jsonl"]
    assert (recipe.seed, recipe.name) == (7, "a=b")
    assert load(recipe_path, "seed=null").seed is None
    assert load(recipe_path, "sources=[]").sources == ()


def test_the_last_override_of_a_key_holds(recipe_path: Path):
    assert load(recipe_path, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("training.lrr=3", r"unknown key 'training\.lrr'.*'lr'"),
        ("name.x=3", "'name' is not a section"),
        ("sources.2.path=x", "'2' is not one of the 2 items"),
        ("sources.first.path=x", "'first' is not one of the 2 items"),
        ("seed=[1", "the value is not YAML"),
        ("training.lr=fast", r"training\.lr: .*\(found 'fast'\)"),
        ("training..lr=1", "unknown key"),
    ],
)
def test_a_bad_override_is_one_clear_line(recipe_path: Path, override, message):
    with pytest.raises(DsmError, match=message) as caught:
        load(recipe_path, override)
    assert "\n" not in str(caught.value)


def test_a_recipe_extends_another_beside_it(tmp_path: Path, recipe_path: Path):
    folder = tmp_path / "more"
    folder.mkdir()
    child = folder / "child.yaml"
    child.write_text("extends: ../recipe.yaml\ntraining: {steps: 3}\nsources: [{path: z}]\n")
    recipe = load(child)
    assert (recipe.name, recipe.training.steps, recipe.training.lr) == ("x", 3, 1e-5)
    assert [source.path for source in recipe.sources] == ["z"]


def test_recipes_that_extend_each_other_are_an_error(tmp_path: Path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("extends: b.yaml\nname: x\n")
    second.write_text("extends: a.yaml\n")
    with pytest.raises(DsmError, match="extends itself") as caught:
        load(first)
    assert "\n" not in str(caught.value)


def test_a_dumped_recipe_loads_as_it_was(tmp_path: Path, recipe_path: Path):
    recipe = load(recipe_path, "training.lr=1e-22", "name=题")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_yaml(recipe))
    assert load(path) == recipe


def test_the_nearest_word_is_suggested_or_all_are_listed():
    assert nearest("gsm8", ["gsm8k", "math"]) == "(did you mean 'gsm8k'?)"
    assert nearest("zzz", ["b", "a"]) == "(known: a, b)"


@pytest.mark.parametrize(
    "text",
    [
        "2024-13-45",
        "!!int ''",
        "!!timestamp x",
        "!!bool maybe",
        "!!float x",
        "{[a]: b}",
        "[" * 2000 + "]" * 2000,
        "{a: " * 2000 + "1" + "}" * 2000,
    ],
)
def test_values_yaml_cannot_build_are_one_clear_line(tmp_path: Path, recipe_path: Path, text: str):
    path = tmp_path / "r.yaml"
    path.write_text(f"name: {text}\n")
    for arguments in ((path,), (recipe_path, f"name={text}")):
        with pytest.raises(DsmError) as caught:
            load(*arguments)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(path))


def test_a_recipe_that_holds_itself_is_one_clear_line(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("name: x\ntraining: &a {x: *a}\n")
    path = tmp_path / "r.yaml"
    path.write_text("extends: base.yaml\ntraining: &b {x: *b}\n")
    with pytest.raises(DsmError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
def test_numbers_are_finite(recipe_path: Path, number: str):
    with pytest.raises(DsmError, match=r"training\.lr: input should be a finite number"):
        load(recipe_path, f"training.lr={number}")


@pytest.mark.parametrize("index", ["\u00b2", "1" * 5000, "-1", "٢"])
def test_only_a_number_in_range_is_an_index(recipe_path: Path, index: str):
    with pytest.raises(DsmError, match="is not one of the 2 items"):
        load(recipe_path, f"sources.{index}.path=x")


class Places(Section):
    folder: Path = Path()
    files: list[str] = Field(default=["a"], min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Places":
        if str(self.folder) == "bad":
            raise ValueError("LR and folder do not go together")
        return self


class Outer(Section):
    places: Places = Places()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("places.folder=null", r"places\.folder: expected a path \(found nothing\)$"),
        ("places.files=[]", r"places\.files: expected at least 1 item \(found \[\]\)$"),
        ("places.files=x", r"places\.files: expected a list \(found 'x'\)$"),
        ("places.files=[[x]]", r"places\.files\.0: expected text \(found \['x'\]\)$"),
        ("places=5", r"places: expected a section of keys and values \(found 5\)$"),
        ("places.folder=bad", r"places: LR and folder do not go together$"),
        ('places.folder="a\\0b"', r"places\.folder: a path holds no NUL character"),
    ],
)
def test_what_is_expected_is_said_in_plain_words(tmp_path: Path, override: str, message: str):
    path = tmp_path / "r.yaml"
    path.write_text("{}\n")
    with pytest.raises(DsmError, match=message):
        load_recipe(path, [override], Outer)


def test_a_long_value_is_shortened_in_messages(recipe_path: Path):
    with pytest.raises(DsmError) as caught:
        load(recipe_path, "training.lr={" + ", ".join(f"key{i}: {i}" for i in range(99)) + "}")
    assert "...)" in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(recipe_path))
