"""The CUDA operators and the attention backends on one GPU: checked, then timed, in one run.

    python benchmarks/gpu/bench_ops_gpu.py --output benchmarks/results/bench-ops-gpu.json

Under 8 minutes; what does not fit is left out, the largest last, with a line that says so. The
operators must be built: `make install` does it where nvcc is. docs/performance.md says how each
figure is measured.

Exit code 1 where a check failed, 2 where there is nothing to measure on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_BENCHMARKS = str(Path(__file__).resolve().parent.parent)
if _BENCHMARKS not in sys.path:
    sys.path.append(_BENCHMARKS)

from attention_rows import CHECKS_NEED_S, attention_cases, attention_checks
from cases import Budget, Case, Rows, compare_to_best, missed_targets, run_cases, run_checks
from describe_gpu import describe_gpu, gpu_state
from device_timing import DeviceTimer
from operator_rows import measure_ceilings, operator_cases, operator_checks
from result_file import FailedRow, Row, print_table, publish
from sanitizers import describe, run_sanitizers

_BUDGET_S = 480
_CEILINGS_NEED_S = 15


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse_arguments(arguments)
    obstacle = what_is_missing()
    if obstacle is not None:
        print(f"bench_ops_gpu: {obstacle}", file=sys.stderr)
        return 2
    budget = Budget(seconds=options.budget_s)
    before = gpu_state()
    rows, missed, faults = _measure(budget)
    machine = describe_gpu() | {"state_before": before, "state_after": gpu_state()}
    sanitized = run_sanitizers() if options.sanitizers else None
    more = {
        "budget_s": budget.seconds,
        "check_failures": faults,
        "targets_missed": missed,
        "sanitizers": sanitized,
    }
    publish(rows, options.output, machine=machine, more=more)
    print_summary(rows, missed, sanitized or (), faults)
    return 1 if faults else 0


def what_is_missing() -> str | None:
    """Why nothing can be measured here, and what to do, in one line; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; run it on a machine with one (`dsm doctor` says more)"
    from dsm_engine.ops.library import cuda_core

    if cuda_core is None:
        return "dsm_engine._cuda is not built: put nvcc on PATH and run `make install` again"
    from dsm_engine.model.attention.backend import operators_status

    reason = operators_status(torch.device("cuda"))
    return None if reason is None else f"dsm_engine._cuda does not run here: {reason}"


def print_summary(
    rows: Rows,
    missed: Sequence[str],
    sanitized: Sequence[dict[str, Any]],
    faults: dict[str, str],
) -> None:
    """The rows that have a target, the best backend at each shape, and what failed."""
    measured = [row for row in rows if isinstance(row, Row)]
    best = [row for row in measured if row.name.startswith("attention_") and row.ratio == 1]
    print("\nin short")
    print_table([row for row in measured if "target" in row.details])
    for row in best:
        milliseconds = row.value.median * 1e3
        print(f"{row.name}: best, {milliseconds:.3f} ms, {row.details['tflops_per_s']:.0f} TFLOP/s")
    print(f"targets missed: {', '.join(missed) or 'none'}")
    failed = [row.name for row in rows if isinstance(row, FailedRow)]
    print(f"not measured: {len(failed)} rows; checks failed: {', '.join(faults) or 'none'}")
    for result in sanitized:
        print(describe(result))


def _measure(budget: Budget) -> tuple[Rows, list[str], dict[str, str]]:
    """The rows, the targets that were missed, and what is wrong by subject."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    checks = [*operator_checks(device), *attention_checks(device)]
    faults, unchecked = run_checks(checks, budget, CHECKS_NEED_S, reserve_s=_CEILINGS_NEED_S)
    timer = DeviceTimer(device)
    ceilings = measure_ceilings(timer, device)
    cases: list[Case] = [*operator_cases(timer, device, ceilings), *attention_cases(timer, device)]
    rows = run_cases(cases, faults, budget, unchecked)
    return [*ceilings.rows(), *compare_to_best(rows)], missed_targets(rows, cases), faults


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Operators and attention, timed on one GPU")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    parser.add_argument(
        "--budget-s", type=float, default=_BUDGET_S, help="seconds for checks and timings"
    )
    parser.add_argument(
        "--sanitizers",
        action="store_true",
        help="run the operator tests under compute-sanitizer too: minutes more",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
