"""The folder of a run: everything someone else needs to say exactly what was run."""

import shutil
from pathlib import Path
from typing import Any

from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.environment import environment_report
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, write_json
from dsm_engine.recipes import dump_yaml
from dsm_engine.training.config import TrainRecipe

TOKENIZER_FOLDER = "tokenizer"


def refuse_foreign_folder(run: Path, *, resume: bool) -> None:
    """Raises DsmError where a new run would be written over another."""
    if not resume and (run / "metrics.jsonl").exists():
        raise DsmError(
            f"{run}: already holds a run; continue it with --resume, or choose another folder "
            f"(run=...), or delete it"
        )


def write_run_folder(
    recipe: TrainRecipe, dataset: TokenizedDataset, packs: PackIndex, tokenizer: Tokenizer
) -> None:
    """Writes recipe.yaml, environment.json, data.json and tokenizer/; rank 0 only."""
    run = recipe.run
    with atomic_file(run / "recipe.yaml") as file:
        file.write(dump_yaml(recipe).encode())
    write_json(run / "environment.json", environment_report())
    write_json(run / "data.json", _describe_data(recipe, dataset, packs))
    copy_tokenizer(tokenizer, run / TOKENIZER_FOLDER)


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Copies the files a tokenizer needs, so that the folder can be moved on its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in tokenizer.files:
        target = folder / source.name
        if target.resolve() != source.resolve():
            shutil.copyfile(source, target)


def _describe_data(
    recipe: TrainRecipe, dataset: TokenizedDataset, packs: PackIndex
) -> dict[str, Any]:
    statistics = packs.statistics(dataset.lengths)
    return {
        "train": str(recipe.data.train),
        "manifest": dataset.manifest,
        "packs": {
            "file": None if recipe.data.packs is None else str(recipe.data.packs),
            "strategy": packs.strategy,
            "seed": packs.seed,
            "capacity": packs.capacity,
            "num_packs": packs.num_packs,
            "fill": statistics.fill,
        },
    }
