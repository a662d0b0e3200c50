"""The folder of a run: everything someone else needs to say exactly what was run."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.environment import environment_report
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, make_folder, read_bytes, write_json
from dsm_engine.model.hf_weights import GENERATION_CONFIG
from dsm_engine.recipes import dump_yaml
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.faults.owner import FolderOwner

TOKENIZER_FOLDER = "tokenizer"
_LOCK = ".lock"


def refuse_foreign_folder(run: Path, *, resume: bool) -> None:
    """Raises DsmError where a new run would be written over another."""
    holds_run = (run / "metrics.jsonl").exists() or (run / "checkpoints" / "latest").exists()
    if not resume and holds_run:
        raise DsmError(
            f"{run}: already holds a run; continue it with --resume, or choose another folder "
            f"(run=...), or delete it"
        )


@contextmanager
def only_writer(run: Path, *, agents: Sequence[str] = ()) -> Iterator[None]:
    """Held by rank 0 while it writes into the run's folder.

    `agents` are those that started the job's ranks (`faults.owner.this_agent`). Raises DsmError
    where another process holds the folder, on this machine or another. Half-written checkpoints
    that a killed run left are removed.
    """
    make_folder(run)
    with (run / _LOCK).open("ab") as lock:
        # A forked writer of checkpoints must not hold the lock of a run that was killed.
        os.register_at_fork(after_in_child=lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DsmError(
                f"{run}: another dsm train is writing here; stop it, or choose another folder"
            ) from error
        with FolderOwner(run, agents=list(agents)):
            for left in (run / "checkpoints").glob(".step_*.tmp"):
                shutil.rmtree(left)
            yield


def write_run_folder(
    recipe: TrainRecipe,
    dataset: TokenizedDataset,
    packs: PackIndex,
    tokenizer: Tokenizer,
    *,
    attention: str,
) -> None:
    """Writes recipe.yaml, environment.json, data.json and tokenizer/; rank 0 only.

    And the generation_config.json of the weights the run starts from. `attention` is the backend
    that was chosen.
    """
    run = recipe.run
    _write_recipe(run / "recipe.yaml", dump_yaml(recipe).encode())
    write_json(run / "environment.json", {**environment_report(), "attention": attention})
    write_json(run / "data.json", _describe_data(recipe, dataset, packs))
    tokenizer.save(run / TOKENIZER_FOLDER)
    if recipe.initialize_from is not None:
        keep_generation_config(recipe.initialize_from, run)


def keep_generation_config(weights: Path, run: Path) -> None:
    """Copies the weights' generation_config.json, where they have one, for exports to carry."""
    if (weights / GENERATION_CONFIG).exists():
        with atomic_file(run / GENERATION_CONFIG) as file:
            file.write(read_bytes(weights / GENERATION_CONFIG))


def _write_recipe(path: Path, content: bytes) -> None:
    """Keeps the recipe of the steps before a resumption under recipe.1.yaml, recipe.2.yaml, ..."""
    if path.exists() and (earlier := path.read_bytes()) != content:
        number = 1
        while (kept := path.with_name(f"recipe.{number}.yaml")).exists():
            number += 1
        with atomic_file(kept) as file:
            file.write(earlier)
    with atomic_file(path) as file:
        file.write(content)


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
            "alignment": packs.alignment,
            "overlong": packs.overlong,
            "ledger": asdict(packs.ledger),
            "num_packs": packs.num_packs,
            "fill": statistics.fill,
        },
    }
