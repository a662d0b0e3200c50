"""Runs with faults put in, several in one torchrun job: imports cost most.

  torchrun --nproc-per-node N faults_worker.py JOBS.json
JOBS.json is a list of {"recipe": {...}, "resume": bool, "fault": {"kind", "rank", "step"} or null}.
Of the kinds, `overflow` makes a gradient infinite on one rank after it was reduced, `signal` sends
the rank SIGUSR1 in the middle of a step (before it joins, of step 0), `signal_in_save` when it
saves a step, `sleep` has it hang in one.
"""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.faults.stop import StopRequest
    from dsm_engine.training.loop import train

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        recipe = TrainRecipe.model_validate(job["recipe"])
        with StopRequest() as stop, put_in(job["fault"]):
            if job["fault"] and job["fault"]["step"] == 0:
                _signal(job["fault"]["rank"])
            train(recipe, resume=job["resume"], stop=stop)
        dist.barrier()
    dist.destroy_process_group()


@contextmanager
def put_in(fault: dict[str, Any] | None) -> Iterator[None]:
    """Runs started within have the fault."""
    import torch.distributed as dist

    from dsm_engine.training import loop

    original, begin_checkpoint = loop.forward_backward, loop._Run._begin_checkpoint
    steps_seen = 0

    def faulty(chunks: Any, *arguments: Any, forward_only: bool = False, **keywords: Any) -> Any:
        nonlocal steps_seen
        steps_seen += not forward_only
        is_due = fault is not None and steps_seen == fault["step"] and not forward_only
        is_due = is_due and dist.get_rank() == fault["rank"]
        if is_due and fault["kind"] == "sleep":
            time.sleep(1000)
        if is_due and fault["kind"] == "signal":
            _signal(fault["rank"])
        loss = original(chunks, *arguments, forward_only=forward_only, **keywords)
        if is_due and fault["kind"] == "overflow":
            _overflow(chunks)
        return loss

    def faulty_save(run: Any) -> Any:
        if fault is not None and fault["kind"] == "signal_in_save" and run._step == fault["step"]:
            _signal(fault["rank"])
        return begin_checkpoint(run)

    loop.forward_backward, loop._Run._begin_checkpoint = faulty, faulty_save
    try:
        yield
    finally:
        loop.forward_backward, loop._Run._begin_checkpoint = original, begin_checkpoint


def _signal(rank: int) -> None:
    """Sends it to this rank, if it is the one, and waits until the signal has come."""
    if os.environ["RANK"] == str(rank):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.5)


def _overflow(chunks: Any) -> None:
    """In the middle of a gradient buffer: with sharded states the rank has half of it."""
    for parameter in chunks[0].module.parameters():
        parameter.main_grad.fill_(float("inf"))


if __name__ == "__main__":  # Megatron's checkpoint writer imports this module again
    main()
