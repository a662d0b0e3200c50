"""Saves and loads checkpoints under many layouts in one torchrun job: imports cost most.

  torchrun --nproc-per-node N reshard_worker.py JOBS.json
JOBS.json is a list of phases, each a list of jobs; a phase begins when that before it has ended.
A job has `ranks` of the job's processes as its world, and does one of
  {"train": RECIPE}                      a run; with "from": RUN that of a copy of RUN's folder;
                                         with "fails": {RANK: [STEP, ...]} files of those ranks do
                                         not grow beyond 4 KiB while those steps are saved
  {"load": RECIPE, "sources": {NAME: RUN}, "output": FILE}
                                         loads each source's checkpoint under the recipe's layout,
                                         saves it again, and notes which tensors are others
"""

import json
import os
import resource
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for phase_idx, jobs in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        for job_idx, job in enumerate(jobs):
            if rank in job["ranks"]:
                name = f"{path}.{phase_idx}.{job_idx}"
                _in_a_world_of(job["ranks"], rank, name, job)
        dist.init_process_group(
            "gloo", init_method=f"file://{path}.{phase_idx}", rank=rank, world_size=num_processes
        )
        dist.barrier()
        dist.destroy_process_group()


def _in_a_world_of(ranks: list[int], rank: int, name: str, job: dict[str, Any]) -> None:
    import torch.distributed as dist

    os.environ["WORLD_SIZE"] = str(len(ranks))
    dist.init_process_group(
        "gloo", init_method=f"file://{name}", rank=ranks.index(rank), world_size=len(ranks)
    )
    if "load" in job:
        _load_and_save_again(job)
    else:
        _train(job)
    dist.barrier()
    dist.destroy_process_group()


def _train(job: dict[str, Any]) -> None:
    import torch.distributed as dist

    from dsm_engine.errors import DsmError
    from dsm_engine.training.checkpoint import under_way
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train

    recipe = TrainRecipe.model_validate(job["train"])
    if "fails" not in job:
        if "from" in job and dist.get_rank() == 0:
            shutil.copytree(job["from"], recipe.run)
        dist.barrier()
        train(recipe, resume="from" in job)
        return
    real = under_way.write_boxes
    steps = job["fails"].get(str(dist.get_rank()), [])

    def write(folder: Path, plan: Any, planner: Any) -> Any:
        if folder.name not in [f".step_{step:08d}.tmp" for step in steps]:
            return real(folder, plan, planner)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            return real(folder, plan, planner)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    under_way.write_boxes = write
    try:
        end = train(recipe).name
    except DsmError as error:
        end = str(error)
    finally:
        under_way.write_boxes = real
    output = Path(f"{recipe.run}.{dist.get_rank()}.json")
    output.write_text(json.dumps(end), encoding="utf-8")


def _load_and_save_again(job: dict[str, Any]) -> None:
    import torch

    from dsm_engine.model.gpt import build_chunks, named_shards
    from dsm_engine.parallel.context import parallel_context
    from dsm_engine.training.checkpoint import (
        describe_checkpoint,
        latest_checkpoint,
        load_checkpoint,
        save_checkpoint,
    )
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.optimizer import wrap_for_training

    recipe = TrainRecipe.model_validate(job["load"])
    assert recipe.model is not None
    results: dict[str, Any] = {}
    with parallel_context(recipe.parallel, seed=recipe.seed) as context:
        chunks = build_chunks(recipe.model, recipe.parallel, recipe.training.precision, context)
        _, optimizer = wrap_for_training(chunks, recipe.training, recipe.parallel, context)
        for name, run in job["sources"].items():
            source = latest_checkpoint(Path(run))
            assert source is not None
            with torch.no_grad():
                for parameter in (each for chunk in chunks for each in chunk.parameters()):
                    parameter.fill_(torch.nan)
            load_checkpoint(source, recipe.model, chunks, optimizer, context)
            expected = read_tensors(source)
            wrong = [
                shard.name
                for chunk in chunks
                for shard in named_shards(chunk, context)
                if not torch.equal(
                    shard.parameter,
                    shard.shard_of(expected[_stored_name(shard.name, expected)]),
                )
            ]
            if (
                not recipe.parallel.use_distributed_optimizer
                and recipe.training.precision == "fp32"
            ):
                wrong += _wrong_moments(chunks, optimizer, expected, context)
            assert not wrong, (context.rank, wrong)
            description = describe_checkpoint(source)
            again = save_checkpoint(recipe.run, description, chunks, optimizer, context, keep=1)
            if context.rank == 0:
                found = read_tensors(again)
                results[name] = {
                    "num_tensors": len(expected),
                    "others": sorted(
                        name
                        for name in found.keys() | expected.keys()
                        if name not in found
                        or name not in expected
                        or not torch.equal(found[name], expected[name])
                    ),
                    "updates": [
                        torch.load(folder / "common.pt", weights_only=True)["updates"]
                        for folder in (source, again)
                    ],
                }
        if context.rank == 0:
            Path(job["output"]).write_text(json.dumps(results), encoding="utf-8")


def _wrong_moments(chunks: Any, optimizer: Any, expected: Any, context: Any) -> list[str]:
    """The moments as torch's optimizer has them, against this rank's part of those stored."""
    import torch

    from dsm_engine.model.gpt import named_shards

    (member,) = optimizer.chained_optimizers
    return [
        f"{moment} of {shard.name}"
        for chunk in chunks
        for shard in named_shards(chunk, context)
        for moment in ("exp_avg", "exp_avg_sq")
        if not torch.equal(
            member.optimizer.state[shard.parameter][moment],
            shard.shard_of(expected[f"optimizer.state.{moment}.{shard.name}"]),
        )
    ]


def _stored_name(name: str, tensors: dict[str, Any]) -> str:
    """The last stage's copy of tied weights is stored once, as the embedding."""
    return name if name in tensors else "embedding.word_embeddings.weight"


def read_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, whole, read by torch's own reader."""
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    tensors = {
        name: torch.full(tuple(tensor.size), torch.nan, dtype=tensor.properties.dtype)
        for name, tensor in reader.read_metadata().state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


if __name__ == "__main__":
    main()
