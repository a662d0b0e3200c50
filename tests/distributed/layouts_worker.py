"""Runs several training recipes one after the other in one torchrun job: imports cost most.

  torchrun --nproc-per-node N layouts_worker.py JOBS.json
JOBS.json is a list of {"recipe": {...}, "resume": bool}.
"""

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(TrainRecipe.model_validate(job["recipe"]), resume=job["resume"])
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
