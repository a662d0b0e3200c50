"""Trains several recipes in one torchrun job, and evaluates in it where a recipe says so.

  torchrun --nproc-per-node N metrics_worker.py RECIPES.json

The evaluation keeps the weights it was given beside its report, and takes its time.
"""

import json
import shutil
import sys
import time
import warnings
from pathlib import Path


def evaluate(model: Path, report: Path) -> dict[str, float | None]:
    """A score, once the weights are kept."""
    shutil.copytree(model, report)
    time.sleep(0.2)
    return {"toy/cot": 0.25}


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for recipe in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(TrainRecipe.model_validate(recipe), evaluate=evaluate)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":  # Megatron's checkpoint writer imports this module again
    main()
