"""Recipes: YAML files checked against typed sections, with dotted overrides from the command line.

A recipe is a tree of `Section`s. Unknown keys are errors that name the nearest key; `extends:` at
the top of a file names another recipe (relative to it) whose values are the defaults.
"""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest


class Section(BaseModel):
    """One part of a recipe: frozen, no unknown keys, a docstring under each field.

    Numbers are finite, and paths hold no NUL character.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("a path holds no NUL character")
        if isinstance(value, Path | str):
            try:
                str(value).encode()
            except UnicodeEncodeError as error:
                raise ValueError("is no Unicode text, so it cannot be written down") from error
        return value


SectionT = TypeVar("SectionT", bound=Section)


def load_recipe(path: Path, overrides: Sequence[str], schema: type[SectionT]) -> SectionT:
    """Reads the recipe at `path`, applies overrides such as `training.lr=2e-5`, and checks it.

    Values of overrides are YAML; list items are addressed by number (`sources.0.path=x.jsonl`).
    Raises DsmError that names the file, the key, the value and what was expected.
    """
    values = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    return validate_recipe(values, schema, str(path))


def validate_recipe(values: dict[str, Any], schema: type[SectionT], where: str) -> SectionT:
    """Checks a tree of plain values against `schema`; `where` begins the error message."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, schema) for problem in error.errors()]
        raise DsmError(f"{where}: " + "; ".join(problems)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, `extends:` resolved. Raises DsmError where it cannot be had."""
    try:
        return _read_extended(path, ())
    except RecursionError as error:
        raise DsmError(f"{path}: is nested too deeply") from error


def dump_yaml(section: Section) -> str:
    """The section with every default written out, as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and reads 1e-5 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is one word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
# What PyYAML's constructors raise for `2024-13-45`, `!!int ""`, `!!timestamp x` and their like.
_VALUE_ERRORS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_MAX_SHOWN = 80  # characters of a value in a message
_EXPECTED = {
    "model_type": "expected a section of keys and values",
    "dict_type": "expected keys and values",
    "list_type": "expected a list",
    "path_type": "expected a path",
    "string_type": "expected text",
}


def _read_extended(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    values = _read_mapping(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise DsmError(f"{path}: extends names one file, found {base!r}")
    base_path = path.parent / base
    chain = (*extended_by, path.resolve())
    if base_path.resolve() in chain:
        raise DsmError(f"{path}: extends itself, through {base}")
    return _merge(_read_extended(base_path, chain), values)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DsmError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except ValueError as error:  # a NUL in the path
        raise DsmError(f"{str(path)!r}: cannot be read: {error}") from error
    try:
        values = yaml.load(text, _RecipeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise DsmError(f"{path}{line}: is not YAML: {_one_line(problem)}") from error
    except _VALUE_ERRORS as error:
        raise DsmError(f"{path}: holds a value YAML cannot read: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise DsmError(f"{path}: a recipe is a mapping of keys to values, found {_kind(values)}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise DsmError(f"override {override!r}: write it as section.key=value")
    try:
        value = yaml.load(text, _RecipeLoader)
    except (yaml.YAMLError, RecursionError, *_VALUE_ERRORS) as error:
        raise DsmError(f"override {_shown(override)}: the value is not YAML") from error
    *parents, last = key.split(".")
    node: Any = values
    for name in parents:
        if isinstance(node, list):
            node = node[_list_index(node, name, override)]
        else:
            node = node.setdefault(name, {})
        if node is None or not isinstance(node, dict | list):
            raise DsmError(f"override {override!r}: {name!r} is not a section")
    if isinstance(node, list):
        node[_list_index(node, last, override)] = value
    else:
        node[last] = value


def _list_index(items: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise DsmError(f"override {override!r}: {name!r} is not one of the {len(items)} items")
    return int(name)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _describe(problem: Any, schema: type[Section]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(schema, problem["loc"][:-1])
        return f"unknown key {name!r} {nearest(location[-1], known)}"
    if problem["type"] == "missing":
        return f"key {name!r} is missing"
    message = _expectation(problem)
    # A validator of a whole section says itself which of its keys are at fault.
    of_section = problem["type"] == "value_error" and isinstance(problem["input"], dict | Section)
    found = "" if of_section else f" (found {_shown(problem['input'])})"
    return _one_line(f"{name}: {message}{found}" if name else message)


def _expectation(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "too_short":
        least = context["min_length"]
        return f"expected at least {least} item{'s' if least > 1 else ''}"
    if kind == "value_error":
        return str(context["error"])
    return problem["msg"][:1].lower() + problem["msg"][1:]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _keys_at(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    for part in location:
        field = schema.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            inner = _section_in(field.annotation)
            if inner is None:
                break
            schema = inner
    return list(schema.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_in(a)) is not None), None)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
