"""What is measured, one after another, within a budget of time: a failure is a row, not the end."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from result_file import SECONDS, FailedRow, Row

Rows = list[Row | FailedRow]
CHECK_NEEDS_S = 10


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
    target: str | None = None
    """What its row is to reach; missed where there is no row."""


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


def run_checks(
    checks: Iterable[tuple[str, Callable[[], None]]],
    budget: Budget,
    needs_s: Mapping[str, float],
    *,
    reserve_s: float = 0,
) -> tuple[dict[str, str], set[str]]:
    """What is wrong, by subject: the first line of what its check raised; and what was not checked.

    A check that may leave less than the reserve is skipped with a line. `needs_s` has the seconds
    at worst of those that take more than CHECK_NEEDS_S.
    """
    faults: dict[str, str] = {}
    skipped: set[str] = set()
    for subject, check in checks:
        left = budget.left()
        if left < needs_s.get(subject, CHECK_NEEDS_S) + reserve_s:
            print(f"check of {subject}: skipped, {left:.0f} s of {budget.seconds:.0f} s are left")
            skipped.add(subject)
            continue
        try:
            check()
        except Exception as error:  # noqa: BLE001 - the other subjects are still to be measured
            faults[subject] = first_line(error)
            print(f"check of {subject} failed: {faults[subject]}", flush=True)
    return faults, skipped


def run_cases(
    cases: Sequence[Case],
    faults: dict[str, str],
    budget: Budget,
    unchecked: Collection[str] = (),
) -> Rows:
    """A row for each case, in order; what is found wrong on the way joins the faults."""
    rows: Rows = []
    for case in cases:
        if case.subject in unchecked:
            rows.append(_failed(case, "not timed: the budget ran out before its check"))
        else:
            rows.append(_run_case(case, faults, budget))
    return rows


def missed_targets(rows: Rows, cases: Iterable[Case]) -> list[str]:
    """Names and targets of the rows that do not reach theirs, or could not be measured."""
    targets = {case.name: case.target for case in cases}
    missed = []
    for row in rows:
        target = targets.get(row.name)
        if target is None:
            continue
        if isinstance(row, FailedRow):
            missed.append(f"{row.name} ({target}; not measured)")
        elif not row.details["met"]:
            missed.append(f"{row.name} ({target})")
    return missed


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


def _run_case(case: Case, faults: dict[str, str], budget: Budget) -> Row | FailedRow:
    fault = faults.get(case.subject)
    if fault is not None:
        return _failed(case, f"not timed, its check failed: {fault}")
    left = budget.left()
    if left < case.needs_s:
        print(f"{case.name}: skipped, {left:.0f} s of {budget.seconds:.0f} s are left", flush=True)
        return _failed(case, f"skipped: the budget of {budget.seconds:.0f} s ran out")
    try:
        return case.run()
    except AssertionError as error:
        faults[case.subject] = first_line(error)
        print(f"check of {case.name} failed: {faults[case.subject]}", flush=True)
        return _failed(case, f"its check failed: {faults[case.subject]}")
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
