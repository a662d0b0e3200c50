"""Reads a Hugging Face folder under one layout after the other and writes it again, in one job.

  torchrun --nproc-per-node N hf_worker.py JOBS.json
JOBS.json is a list of {"parallel": {...}, "source": FOLDER, "output": FOLDER}. OUTPUT_run gets a
checkpoint of step 0. In OUTPUT.json each rank leaves how many numbers it read and how many it
holds, or the error it got.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        mine = read_and_write(job)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        if dist.get_rank() == 0:
            Path(job["output"] + ".json").write_text(json.dumps(everyone), encoding="utf-8")
    dist.destroy_process_group()


def read_and_write(job: dict[str, Any]) -> dict[str, Any]:
    from dsm_engine.errors import DsmError
    from dsm_engine.model.gpt import build_chunks
    from dsm_engine.model.hf_weights import load_hf_weights, read_hf_config, save_hf_model
    from dsm_engine.model.safetensors_files import SafetensorsFolder
    from dsm_engine.parallel.config import ParallelConfig
    from dsm_engine.parallel.context import parallel_context
    from dsm_engine.training.checkpoint import CheckpointDescription, save_checkpoint

    num_read = 0
    take = SafetensorsFolder.take

    def counted(*arguments: Any) -> Any:
        nonlocal num_read
        tensor = take(*arguments)
        num_read += tensor.numel()
        return tensor

    source = Path(job["source"])
    model, parallel = read_hf_config(source), ParallelConfig(**job["parallel"])
    SafetensorsFolder.take = counted
    try:
        with parallel_context(parallel, seed=0) as context:
            chunks = build_chunks(model, parallel, "fp32", context)
            load_hf_weights(chunks, model, context, source)
            save_hf_model(
                chunks,
                model,
                context,
                Path(job["output"]),
                bos_id=1,
                eos_id=2,
                shard_bytes=100_000,
            )
            description = CheckpointDescription(
                step=0, model=model, precision="fp32", stream={}, optimizer=None
            )
            run = Path(job["output"] + "_run")
            save_checkpoint(run, description, chunks, None, context, keep=1)
    except DsmError as error:
        return {"error": str(error)}
    finally:
        SafetensorsFolder.take = take
    held = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    return {"num_read": num_read, "num_held": held}


if __name__ == "__main__":
    main()
