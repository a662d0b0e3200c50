"""What the tests of preprocessing share: recipes over small files, and runs to be ended."""

import subprocess
import sys
from pathlib import Path

import orjson

from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.recipes import dump_yaml


def write_rows(path: Path, num_rows: int, *, first: int = 0) -> Path:
    """Rows for the reader `jsonl`, each another question."""
    rows = [
        {
            "question": f"What is {n} + {n + 1}?",
            "solution": f"It is {2 * n + 1}." + " Yes." * (n % 5),
        }
        for n in range(first, first + num_rows)
    ]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def recipe_of(output: Path, model: Path, *paths: Path, **values) -> PreprocessRecipe:
    """A recipe that reads the paths, each a source named after its file."""
    sources = [{"reader": "jsonl", "path": path, "name": path.stem} for path in paths]
    return PreprocessRecipe.model_validate(
        {"output": output, "tokenizer": model, "sources": sources, **values}
    )


def files_of(prefix: Path) -> dict[str, bytes]:
    """Every file of the dataset by its name."""
    found = sorted(prefix.parent.glob(f"{prefix.name}.*"))
    return {path.name: path.read_bytes() for path in found if path.is_file()}


def command(recipe: PreprocessRecipe, *options: str, block_bytes: int = 4 << 20) -> list[str]:
    """The command line of `dsm preprocess` in a process of its own, with smaller blocks."""
    path = recipe.output.parent.parent / f"{recipe.output.name}.yaml"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    program = (
        "import sys\nfrom dsm_engine.data.preparation import blocks\n"
        f"blocks.BLOCK_BYTES = {block_bytes}\n"
        "from dsm_engine.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    return [sys.executable, "-c", program, "preprocess", str(path), *options]


def run(recipe: PreprocessRecipe, *options: str, **values) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(recipe, *options, **values), capture_output=True, text=True, check=False
    )
