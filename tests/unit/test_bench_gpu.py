"""The GPU benchmark as far as no GPU is needed: what it counts, how it goes on, what it writes.

Its rows are made on the CPU here, by a timer that only calls.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = [str(REPOSITORY / "benchmarks" / "gpu"), str(REPOSITORY / "benchmarks")]
sys.path[:0] = FOLDERS
try:
    import attention_rows
    import bench_ops_gpu
    import cases
    import describe_gpu
    import device_timing
    import operator_rows
    import result_file
    import sanitizers
    from attention_flops import attention_flops
    from lengths import pack_lengths
finally:
    for folder in FOLDERS:
        sys.path.remove(folder)

CPU = torch.device("cpu")


class CallingTimer:
    """Calls twice; a call takes a second, the next one two."""

    def time_small(self, call: Callable[[], Any]) -> result_file.Timing:
        call(), call()
        return result_file.summarize([1.0, 2.0])

    time_large = time_small


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_row(name: str, seconds: float = 1.0, **details: Any) -> result_file.Row:
    return result_file.Row(name=name, n=8, value=result_file.summarize([seconds]), details=details)


def a_case(name: str, run: Callable[[], Any] | None = None, needs_s: float = 1) -> cases.Case:
    run = run or (lambda: a_row(name))
    return cases.Case(name=name, n=8, subject=name.split("_")[0], needs_s=needs_s, run=run)


def test_flops_of_two_documents_by_hand() -> None:
    # 3 + 1 pairs, 2 heads of 8: two products of 8 multiplications and additions, then five
    assert attention_flops([2, 1], 2, 8) == (4 * 2 * 8 * 4, 10 * 2 * 8 * 4)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 8),
)
@settings(max_examples=50)
def test_flops_are_those_of_the_pairs_in_the_mask(lengths, heads, head_dim) -> None:
    mask = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths))
    forward, backward = attention_flops(lengths, heads, head_dim)
    assert forward == int(mask.sum()) * heads * 4 * head_dim
    assert backward == 2.5 * forward


@pytest.mark.parametrize(("tokens", "mean"), [(4_096, 350), (65_536, 350), (65_536, 2_000), (1, 9)])
def test_documents_fill_a_pack_and_have_the_mean_that_was_asked_for(tokens, mean) -> None:
    lengths = pack_lengths(tokens, mean)
    assert sum(lengths) == tokens and min(lengths) > 0
    assert lengths == pack_lengths(tokens, mean)
    if len(lengths) > 30:
        assert tokens / len(lengths) == pytest.approx(mean, rel=0.3)


def test_a_case_that_needs_more_than_is_left_is_skipped_with_a_line(capsys) -> None:
    clock = Clock()
    budget = cases.Budget(seconds=10, clock=clock)

    def slow() -> result_file.Row:
        clock.now += 7
        return a_row("slow")

    todo = [a_case("slow", slow), a_case("large", needs_s=5), a_case("small", needs_s=2)]
    slow_row, large, small = cases.run_cases(todo, {}, budget)
    assert (slow_row, small) == (a_row("slow"), a_row("small"))
    assert large.error == "skipped: the budget of 10 s ran out"
    assert capsys.readouterr().out == "large: skipped, 3 s of 10 s are left\n"


def test_a_case_that_fails_is_a_row_with_the_first_line_and_the_next_is_run() -> None:
    def failing() -> result_file.Row:
        raise RuntimeError("CUDA error 2: out of memory\nand much more")

    failed, passed = cases.run_cases(
        [a_case("failing", failing), a_case("next")], {}, cases.Budget(seconds=10)
    )
    assert failed.error == "RuntimeError: CUDA error 2: out of memory"
    assert passed == a_row("next")


def test_what_fails_its_check_is_not_timed(capsys) -> None:
    def wrong() -> None:
        raise AssertionError("output 2 is not the CPU's")

    faults, skipped = cases.run_checks(
        [("mask", wrong), ("loss", lambda: None)], cases.Budget(seconds=1_000), {}
    )
    assert not skipped
    assert faults == {"mask": "AssertionError: output 2 is not the CPU's"}
    assert "check of mask failed: AssertionError" in capsys.readouterr().out

    def never() -> result_file.Row:
        pytest.fail("timed although it is wrong")

    rows = cases.run_cases(
        [a_case("mask_8", never), a_case("loss_8")], faults, cases.Budget(seconds=10)
    )
    assert rows[0].error.startswith("not timed, its check failed: AssertionError: output 2")
    assert rows[1] == a_row("loss_8")


def test_a_check_that_may_outlast_the_budget_is_skipped_and_its_cases_are_not_timed(capsys) -> None:
    def never() -> Any:
        pytest.fail("the budget does not allow it")

    clock = Clock()
    budget = cases.Budget(seconds=100, clock=clock)
    checks = [("flex", never), ("mask", lambda: None), ("split", never)]

    def slow() -> None:
        clock.now += 80

    checks[1] = ("mask", slow)
    faults, skipped = cases.run_checks(checks, budget, {"flex": 95}, reserve_s=15)
    assert faults == {} and skipped == {"flex", "split"}
    assert capsys.readouterr().out == (
        "check of flex: skipped, 100 s of 100 s are left\n"
        "check of split: skipped, 20 s of 100 s are left\n"
    )
    todo = [a_case("flex_8", never), a_case("mask_8")]
    flex, mask = cases.run_cases(todo, faults, budget, skipped)
    assert flex.error == "not timed: the budget ran out before its check"
    assert mask == a_row("mask_8")


def test_a_row_that_finds_a_wrong_answer_is_a_fault_of_its_subject(capsys) -> None:
    def wrong() -> result_file.Row:
        raise AssertionError("the lists differ")

    faults: dict[str, str] = {}
    todo = [a_case("mask_8", wrong), a_case("mask_16"), a_case("loss_8")]
    rows = cases.run_cases(todo, faults, cases.Budget(seconds=10))
    assert faults == {"mask": "AssertionError: the lists differ"}
    assert [getattr(row, "error", None) for row in rows] == [
        "its check failed: AssertionError: the lists differ",
        "not timed, its check failed: AssertionError: the lists differ",
        None,
    ]
    assert capsys.readouterr().out == "check of mask_8 failed: AssertionError: the lists differ\n"


@pytest.mark.parametrize(("fails", "exit_code"), [(True, 1), (False, 0)])
def test_the_exit_code_says_whether_a_row_found_a_wrong_answer(
    monkeypatch, capsys, fails, exit_code
) -> None:
    def run() -> result_file.Row:
        assert not fails
        return a_row("mask_8")

    ceilings = SimpleNamespace(rows=list)
    for name, fake in {
        "what_is_missing": lambda: None,
        "gpu_state": dict,
        "describe_gpu": dict,
        "operator_checks": lambda device: [],
        "attention_checks": lambda device: [],
        "DeviceTimer": lambda device: CallingTimer(),
        "measure_ceilings": lambda timer, device: ceilings,
        "operator_cases": lambda timer, device, ceilings: [a_case("mask_8", run)],
        "attention_cases": lambda timer, device: [],
    }.items():
        monkeypatch.setattr(bench_ops_gpu, name, fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert bench_ops_gpu.main([]) == exit_code
    assert f"checks failed: {'mask' if fails else 'none'}" in capsys.readouterr().out


def test_a_target_is_missed_by_a_figure_and_by_its_absence() -> None:
    todo = [
        replace(a_case(name), target="under 15 us") for name in ("slow_8", "fast_8", "absent_8")
    ]
    rows = [
        a_row("slow_8", target="under 15 us", met=False),
        a_row("fast_8", target="under 15 us", met=True),
        result_file.FailedRow(name="absent_8", n=8, error="out of memory"),
        result_file.FailedRow(name="other_8", n=8, error="absent"),
    ]
    assert cases.missed_targets(rows, [*todo, a_case("other_8")]) == [
        "slow_8 (under 15 us)",
        "absent_8 (under 15 us; not measured)",
    ]


def test_rows_of_one_shape_stand_beside_the_best_of_it() -> None:
    failed = result_file.FailedRow(name="a_te", n=8, error="absent")
    rows = [a_row("a_flex", 4.0, shape="a"), a_row("a_flash", 1.0, shape="a"), failed]
    rows += [a_row("b_flex", 3.0, shape="b"), a_row("mask", 5.0)]
    flex, flash, same, alone, mask = cases.compare_to_best(rows)
    assert flex.baseline == "the best: a_flash"
    assert (flex.ratio, flash.ratio, alone.ratio) == (0.25, 1.0, 1.0)
    assert same is failed and mask.baseline is None


def test_the_file_has_the_form_of_every_benchmark(tmp_path: Path, capsys) -> None:
    rows = [a_row("attention_8_te", 0.002, tflops_per_s=3.5)]
    rows.append(result_file.FailedRow(name="attention_8_flash3", n=8, error="not installed"))
    output = tmp_path / "bench.json"
    result_file.publish(rows, output, machine={"torch": "2"}, more={"budget_s": 480})
    content = orjson.loads(output.read_bytes())
    assert content["machine"].keys() >= {"cpu", "commit", "torch"} and content["budget_s"] == 480
    measured, failed = content["rows"]
    shared = {"name", "n", "value", "unit", "baseline", "baseline_value", "ratio", "command"}
    assert measured.keys() >= shared and failed.keys() == shared | {"error"}
    assert (measured["value"], measured["tflops_per_s"]) == (0.002, 3.5)
    assert (failed["value"], failed["error"]) == (None, "not installed")
    assert "attention_8_flash3          null  not installed" in capsys.readouterr().out


def test_the_last_lines_name_targets_the_best_and_what_failed(capsys) -> None:
    best = a_row("attention_8_te", 0.002, shape="attention_8", tflops_per_s=412.3)
    missed = a_row("block_mask_8", 2e-5, target="under 15 us", met=False)
    failed = result_file.FailedRow(name="attention_8_flex", n=8, error="absent")
    rows = cases.compare_to_best([best, missed, failed])
    results = [a_result(errors=2, exit_code=99)]
    bench_ops_gpu.print_summary(rows, ["block_mask_8 (under 15 us)"], results, {"mask": "wrong"})
    out = capsys.readouterr().out
    assert "attention_8_te: best, 2.000 ms, 412 TFLOP/s" in out
    assert "targets missed: block_mask_8 (under 15 us)" in out
    assert "not measured: 1 rows; checks failed: mask" in out
    assert out.endswith("compute-sanitizer memcheck: 2 errors, exit code 99\n")


def test_without_a_device_it_ends_with_exit_code_2_and_one_line(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert bench_ops_gpu.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "torch sees no CUDA device" in error


def test_without_the_built_operators_it_says_how_to_build_them(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("dsm_engine.ops.library.cuda_core", None)
    assert bench_ops_gpu.main([]) == 2
    assert "put nvcc on PATH and run `make install` again" in capsys.readouterr().err


def test_with_operators_that_do_not_run_it_says_why(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    operators = SimpleNamespace(runtime_status=lambda idx: f"device {idx} has an old driver")
    monkeypatch.setattr("dsm_engine.ops.library.cuda_core", operators)
    monkeypatch.setattr("dsm_engine.model.attention.backend.cuda_core", operators)
    assert bench_ops_gpu.main([]) == 2
    error = capsys.readouterr().err
    assert (
        error == "bench_ops_gpu: dsm_engine._cuda does not run here: device 0 has an old driver\n"
    )


def test_a_rate_is_high_where_the_time_is_short() -> None:
    rate = device_timing.rate(result_file.summarize([1.0, 2.0, 4.0]), 8)
    assert rate.median == 4 and rate.quartiles == (8 / 3, 8 / 1.5)


def test_copies_count_what_is_read_and_what_is_written() -> None:
    assert device_timing.copy_bandwidth(CallingTimer(), CPU, 300).median == 2 * 300 / 1.5


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda as far as the timer uses it: a log of what was queued; each interval is 3 ms."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> float:
            return 3.0

    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: log.append("replay"))
    fakes = {
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=16),
        "Event": Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: graph,
        "graph": lambda graph: nullcontext(),
        "synchronize": lambda: None,
        "_sleep": lambda cycles: log.append("wait"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(device_timing, "_WARM_UP_S", 0)
    monkeypatch.setattr(device_timing, "_MEASURE_S", 0)
    return log


def test_small_calls_are_timed_as_replays_of_many(fake_cuda) -> None:
    calls = []
    timing = device_timing.DeviceTimer(CPU).time_small(lambda: calls.append(1))
    assert len(calls) == 1 + device_timing.CALLS_PER_GRAPH  # the first one is to warm up
    assert fake_cuda == ["replay"] + ["wait", "event", "replay", "event"] * 5
    assert timing.median == pytest.approx(3e-3 / device_timing.CALLS_PER_GRAPH)


def test_large_calls_are_queued_behind_a_wait_and_over_a_cold_cache(fake_cuda) -> None:
    timer = device_timing.DeviceTimer(CPU)
    timer._over_cache.fill_(7)
    timing = timer.time_large(lambda: fake_cuda.append("call"))
    assert fake_cuda == ["call"] + ["wait", "event", "call", "event"] * 5
    assert timer._sum == 7 * 4 * 16 / 4  # four times the cache was read, in fp32
    assert timing.median == 3e-3 and timing.repetitions == 5


def test_the_state_of_the_gpu_is_read_or_null() -> None:
    state = describe_gpu.parse_gpu_state("580.1, 1980, 2619, 1980, 2619, 35, 120.5, 700.0\n")
    assert (state["driver_version"], state["clocks.sm"]) == ("580.1", "1980")
    assert set(describe_gpu.parse_gpu_state("No devices were found").values()) == {None}


@pytest.mark.parametrize("subject", operator_rows.OPERATORS)
def test_an_operator_passes_its_check_against_itself_and_fails_it_where_it_differs(
    subject, monkeypatch
) -> None:
    monkeypatch.setattr(operator_rows, "_CHECKED_SIZES", (1, 130))
    dict(operator_rows.operator_checks(CPU))[subject]()
    operator = operator_rows.OPERATORS[subject]

    def wrong_from_the_second_on(tokens: int, device: torch.device) -> Callable[[], Any]:
        num_made.append(tokens)
        outputs = operator_rows._tensors(operator(tokens, device)())
        if len(num_made) % 2 == 0:
            outputs[-1] = torch.where(torch.isfinite(outputs[-1]), 3, outputs[-1])
            outputs[-1] = outputs[-1].to(outputs[-1].dtype)
        return lambda: outputs

    num_made: list[int] = []
    with pytest.raises(AssertionError, match="is not the CPU's"):
        operator_rows._check(wrong_from_the_second_on, CPU)


def test_every_operator_has_its_rows(monkeypatch) -> None:
    seconds = result_file.summarize([2.0])
    ceilings = operator_rows.Ceilings(copy=seconds, launch=seconds)
    made = operator_rows.operator_cases(CallingTimer(), CPU, ceilings)
    fills = {f"fill_{dtype}" for dtype in operator_rows._DTYPES}
    assert {case.subject for case in made} == operator_rows.OPERATORS.keys() | fills
    assert len({case.name for case in made}) == len(made)
    small = [case for case in made if case.n == 4_096]
    monkeypatch.setattr(torch, "compile", lambda function: function)  # half a minute
    rows = cases.run_cases(small, {}, cases.Budget(seconds=1_000))
    assert [getattr(row, "error", None) for row in rows] == [None] * len(small)
    assert [row.name for row in rows] == [case.name for case in small]
    dense = next(row for row in rows if row.name == "dense_mask_fp32_4096")
    assert dense.unit == "GB/s" and dense.value.median == 4 * 4_096**2 / 1.5 / 1e9
    assert dense.ratio == pytest.approx(4 * 4_096**2 / 1.5 / 2)
    fill = next(row for row in rows if row.name == "fill_fp32_4096")
    assert (fill.value, fill.ratio, fill.unit) == (dense.value, dense.ratio, "GB/s")
    metadata = next(row for row in rows if row.name == "packed_metadata_4096")
    assert metadata.ratio == 2 / 1.5 and metadata.details["met"]


def test_the_share_of_bandwidth_is_a_target_where_a_mask_exceeds_the_cache() -> None:
    seconds = result_file.summarize([2.0])
    ceilings = operator_rows.Ceilings(copy=seconds, launch=seconds)
    made = operator_rows.operator_cases(CallingTimer(), CPU, ceilings)
    masks = [case for case in made if case.subject.startswith("dense_mask_")]
    assert {case.n: case.target for case in masks} == {
        4_096: None,
        16_384: "90% of copy bandwidth",
        32_768: "90% of copy bandwidth",
    }


def failing_create_block_mask(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("out of memory\nand more")


def wrong_create_block_mask(mask_mod: Any, *arguments: Any, **options: Any) -> Any:
    return create_block_mask(lambda b, h, q, k: q >= k, *arguments, **options)


def test_a_create_block_mask_that_fails_is_named_in_the_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(operator_rows, "create_block_mask", failing_create_block_mask)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    row = operator_rows._block_mask_row(4_096, CallingTimer(), CPU)
    result_file.print_table([row])
    assert "create_block_mask, compiled, failed: RuntimeError: out of m" in capsys.readouterr().out
    assert row.ratio is None and row.details["equals_baseline"] is None


def test_lists_that_are_not_those_of_create_block_mask_are_a_fault(monkeypatch) -> None:
    monkeypatch.setattr(operator_rows, "create_block_mask", wrong_create_block_mask)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(AssertionError, match="not create_block_mask's"):
        operator_rows._block_mask_row(4_096, CallingTimer(), CPU)


SHAPES = [
    attention_rows.Shape(tokens=96, mean=24, heads=2, groups=2, head_dim=16),
    attention_rows.Shape(tokens=96, mean=24, heads=2, groups=1, head_dim=16),
]


def test_shapes_cover_sizes_means_and_gqa() -> None:
    names = [shape.name for shape in attention_rows.SHAPES]
    assert names[:3] == [
        "attention_4096_mean350",
        "attention_4096_mean2000",
        "attention_4096_mean350_gqa8",
    ]
    assert len(set(names)) == 9
    for shape in attention_rows.SHAPES:
        assert sum(shape.lengths()) == shape.tokens


def test_each_backend_is_a_row_that_has_flops_or_says_why_not() -> None:
    made = attention_rows.attention_cases(CallingTimer(), CPU, SHAPES)
    rows = {case.name: case.run for case in made}
    row = rows["attention_96_mean24_gqa1_split"]()
    forward, backward = attention_flops(SHAPES[1].lengths(), 2, 16)
    assert row.details["flops"] == forward + backward
    assert row.details["tflops_per_s"] == pytest.approx((forward + backward) / 1.5e12)
    assert row.details["documents"] == len(SHAPES[1].lengths())
    failed = cases.run_cases(
        [case for case in made if case.name.endswith("_flash3")], {}, cases.Budget(seconds=1_000)
    )
    assert len(failed) == 2 and all("needs a CUDA device" in row.error for row in failed)


def test_a_backend_is_checked_against_the_dense_mask(monkeypatch) -> None:
    checks = dict(attention_rows.attention_checks(CPU, SHAPES))
    checks["attention_split"]()
    checks["attention_flash3"]()  # cannot serve: no fault
    one_document = [SHAPES[0].tokens]
    attention = attention_rows._attention

    def merged(shape, backend, device, dtype):
        if backend == "split":
            shape = SimpleNamespace(
                heads=2, groups=shape.groups, head_dim=16, lengths=lambda: one_document
            )
        return attention(shape, backend, device, dtype)

    monkeypatch.setattr(attention_rows, "_attention", merged)
    with pytest.raises(AssertionError, match="output of attention_96_mean24 is"):
        dict(attention_rows.attention_checks(CPU, SHAPES))["attention_split"]()


def a_result(**values: Any) -> dict[str, Any]:
    return {"tool": "memcheck", "errors": 0, "exit_code": 0, "error": None} | values


@pytest.mark.parametrize(
    ("output", "exit_code", "line"),
    [
        ("12 passed\n==== ERROR SUMMARY: 0 errors", 0, "clean"),
        ("12 passed\n==== ERROR SUMMARY: 3 errors", 99, "3 errors, exit code 99"),
        ("1 passed, 1 failed\n==== ERROR SUMMARY: 0 errors", 1, "0 errors, exit code 1"),
        ("12 passed\n==== RACECHECK SUMMARY: 2 hazards displayed (1 errors)", 99, "2 errors"),
        ("12 passed", 0, "an unknown number of errors, exit code 0"),
        ("12 skipped\n==== ERROR SUMMARY: 0 errors", 0, "no test passed"),
    ],
)
def test_what_a_sanitizer_says_is_read(output, exit_code, line, tmp_path, monkeypatch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {exit_code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (result,) = sanitizers.run_sanitizers(["memcheck"])
    assert result["found"] and result["exit_code"] == exit_code
    assert "--tool memcheck" in result["command"] and "tests/gpu" in result["command"]
    assert sanitizers.describe(result).startswith(f"compute-sanitizer memcheck: {line}")
    assert sanitizers.is_clean(result) == (line == "clean")


def test_a_machine_without_sanitizers_is_told_so(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(sanitizers, "_find_program", lambda: None)
    assert sanitizers.main() == 2
    assert capsys.readouterr().out.count("not found: it comes with the CUDA toolkit") == 3
