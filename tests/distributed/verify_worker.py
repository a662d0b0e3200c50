"""Runs `dsm verify` several times in one torchrun job: imports cost most.

  torchrun --nproc-per-node N verify_worker.py JOBS.json
JOBS.json is {name: {"words": [...], "fault": name or null}}; every rank writes what it printed, its
exit code and the seconds it took to NAME.RANK.json beside it.
"""

import contextlib
import io
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    jobs_file = Path(sys.argv[1])
    for name, job in json.loads(jobs_file.read_text(encoding="utf-8")).items():
        result = _run(job["words"], job["fault"])
        output = jobs_file.with_name(f"{name}.{dist.get_rank()}.json")
        output.write_text(json.dumps(result), encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()


def _run(words: list[str], fault: str | None) -> dict[str, Any]:
    from dsm_engine import cli

    started = time.perf_counter()
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            _put_in(fault, patch)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = cli.main(words)
    seconds = time.perf_counter() - started
    return {"code": code, "out": printed.getvalue(), "err": errors.getvalue(), "seconds": seconds}


def _put_in(fault: str, patch: pytest.MonkeyPatch) -> None:
    from dsm_engine.training import isolation
    from tests import gradient_faults, isolation_faults

    if fault in gradient_faults.FAULTS:
        gradient_faults.FAULTS[fault](patch.setattr)
        return
    build = isolation.build_chunks
    change = (isolation_faults.FAULTS | isolation_faults.FAULTS_OF_RANKS)[fault]

    def build_with_fault(*arguments: Any, **keywords: Any) -> Any:
        chunks = build(*arguments, **keywords)
        for chunk in chunks:
            change(chunk)
        return chunks

    patch.setattr(isolation, "build_chunks", build_with_fault)


if __name__ == "__main__":
    main()
