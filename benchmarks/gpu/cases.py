"""What is measured, one after another, within a budget of time: a failure is a row, not the end."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from result_file import SECONDS, FailedRow, Row

Rows = list[Row | FailedRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row to be."""

    name: str
    n: int
    """Tokens."""
    subject: str
    """What is checked before it is timed; a case whose subject failed is not run."""
    needs_s: float
    """Seconds it takes at worst, compilation included: less than that left, and it is skipped."""
    run: Callable[[], Row]


@dataclass(kw_only=True, slots=True)
class Budget:
    """Seconds for the whole run."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def left(self) -> float:
        return self.seconds - (self.clock() - self.started)


def run_checks(checks: Iterable[tuple[str, Callable[[], None]]]) -> dict[str, str]:
    """What is wrong, by subject: the first line of what its check raised."""
    faults = {}
    for subject, check in checks:
        try:
            check()
        except Exception as error:  # noqa: BLE001 - the other subjects are still to be measured
            faults[subject] = first_line(error)
            print(f"check of {subject} failed: {faults[subject]}", flush=True)
    return faults


def run_cases(cases: Sequence[Case], faults: dict[str, str], budget: Budget) -> Rows:
    """A row for each case, in order."""
    return [_run_case(case, faults.get(case.subject), budget) for case in cases]


def compare_to_best(rows: Rows) -> Rows:
    """Rows of one shape (`details["shape"]`) beside the fastest of them."""
    best: dict[str, Row] = {}
    for row in rows:
        shape = _shape(row)
        if isinstance(row, Row) and shape is not None:
            assert row.unit == SECONDS
            best[shape] = min(best.get(shape, row), row, key=lambda row: row.value.median)
    return [_beside(row, best.get(_shape(row) or "")) for row in rows]


def first_line(error: BaseException) -> str:
    """An error in one line, with its kind."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _run_case(case: Case, fault: str | None, budget: Budget) -> Row | FailedRow:
    if fault is not None:
        return _failed(case, f"not timed, its check failed: {fault}")
    left = budget.left()
    if left < case.needs_s:
        print(f"{case.name}: skipped, {left:.0f} s of {budget.seconds:.0f} s are left", flush=True)
        return _failed(case, f"skipped: the budget of {budget.seconds:.0f} s ran out")
    try:
        return case.run()
    except Exception as error:  # noqa: BLE001 - a backend that fails is a row
        return _failed(case, first_line(error))


def _failed(case: Case, error: str) -> FailedRow:
    return FailedRow(name=case.name, n=case.n, error=error)


def _shape(row: Row | FailedRow) -> str | None:
    return row.details.get("shape") if isinstance(row, Row) else None


def _beside(row: Row | FailedRow, best: Row | None) -> Row | FailedRow:
    if isinstance(row, FailedRow) or best is None:
        return row
    return replace(row, baseline=f"the best: {best.name}", baseline_value=best.value)
