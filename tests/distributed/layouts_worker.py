"""Runs several training recipes one after the other in one torchrun job: imports cost most.

  torchrun --nproc-per-node N layouts_worker.py JOBS.json
JOBS.json is a list of {"recipe": {...}, "resume": bool}, or with "isolation": FILE in the place of
resume: then the per-token losses of the first pack, computed packed and document by document, go
to FILE.
"""

import json
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        recipe = TrainRecipe.model_validate(job["recipe"])
        if "isolation" in job:
            write_packed_and_unpacked_losses(recipe, Path(job["isolation"]))
        else:
            train(recipe, resume=job["resume"])
        dist.barrier()
    dist.destroy_process_group()


def write_packed_and_unpacked_losses(recipe: Any, output: Path) -> None:
    """Writes {"packed": [...], "unpacked": [...], "merged": [...]}, a loss a token of one pack."""
    import numpy as np
    import torch

    from dsm_engine.data.pack_index import build_pack_index
    from dsm_engine.data.packed_batch import PackReader
    from dsm_engine.data.tokenized_dataset import TokenizedDataset
    from dsm_engine.model.attention.packs import packed_sequences
    from dsm_engine.model.gpt import build_gpt, initialize_weights
    from dsm_engine.parallel.context import parallel_context

    dataset = TokenizedDataset(recipe.data.train)
    packs = build_pack_index(
        dataset.lengths, capacity=recipe.data.seq_length, strategy="random", seed=recipe.seed
    )
    batch = PackReader(dataset, packs, pad_id=0).read(0)
    ends = batch.cu_seqlens[: batch.num_documents + 1]
    with parallel_context(recipe.parallel, seed=recipe.seed) as context, torch.no_grad():
        gpt = build_gpt(recipe.model, recipe.parallel, "fp32", context)
        initialize_weights([gpt], recipe.model, context, seed=recipe.seed)

        def losses(start: int, end: int, cu_seqlens: Any) -> list[float]:
            tokens, labels, positions = (
                torch.from_numpy(array[start:end])[None]
                for array in (batch.tokens, batch.labels, batch.position_ids)
            )
            lengths = tuple(int(length) for length in np.diff(cu_seqlens))
            packed = packed_sequences(
                torch.tensor(cu_seqlens, dtype=torch.int32), lengths, max(lengths)
            )
            output = gpt(tokens, positions, None, labels=labels, packed_seq_params=packed)
            weights = torch.from_numpy(batch.loss_weights[start:end])
            return torch.where(weights > 0, output[0], 0.0).tolist()

        values = {
            "packed": losses(0, recipe.data.seq_length, ends),
            "merged": losses(0, recipe.data.seq_length, ends[[0, -1]]),
            "unpacked": [
                loss
                for start, end in pairwise(ends)
                for loss in losses(int(start), int(end), [0, int(end - start)])
            ],
        }
    if context.rank == 0:
        output.write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":  # Megatron's checkpoint writer imports this module again
    main()
