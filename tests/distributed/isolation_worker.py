"""Runs `dsm verify` several times in one torchrun job: imports cost most.

  torchrun --nproc-per-node N isolation_worker.py JOBS.json
JOBS.json is {name: {"words": [...], "fault": name or null}}; every rank writes what it printed and
its exit code to NAME.RANK.json beside it.
"""

import contextlib
import io
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
    jobs_file = Path(sys.argv[1])
    for name, job in json.loads(jobs_file.read_text(encoding="utf-8")).items():
        result = _run(job["words"], job["fault"])
        output = jobs_file.with_name(f"{name}.{dist.get_rank()}.json")
        output.write_text(json.dumps(result), encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()


def _run(words: list[str], fault: str | None) -> dict[str, Any]:
    from dsm_engine import cli
    from dsm_engine.training import isolation
    from tests.isolation_faults import FAULTS

    build = isolation.build_chunks

    def build_with_fault(*arguments: Any, **keywords: Any) -> Any:
        chunks = build(*arguments, **keywords)
        if fault is not None:
            for chunk in chunks:
                FAULTS[fault](chunk)
        return chunks

    isolation.build_chunks = build_with_fault
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = cli.main(words)
    finally:
        isolation.build_chunks = build
    return {"code": code, "out": printed.getvalue(), "err": errors.getvalue()}


if __name__ == "__main__":
    main()
