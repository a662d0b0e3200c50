"""The benchmarks run, and write what every benchmark of the project writes."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import orjson
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
FIELDS = {"name", "n", "value", "unit", "baseline", "baseline_value", "ratio", "command"}
ROWS = {
    "pack_best_fit_776k",
    "pack_random_776k",
    "open_776k",
    "get_python",
    "gather_4096_python",
    "gather_4096_python_vs_megatron_gpt",
}

OPS_ROWS = {
    "block_mask_lists_4096",
    "block_mask_4096",
    "block_mask_32768",
    "block_mask_131072",
    "dense_mask_4096",
    "cpu_attention_4096",
}


@pytest.fixture
def result_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("result_file")


def test_bench_data_runs_end_to_end_and_its_ratios_are_what_its_values_say(tmp_path) -> None:
    output = tmp_path / "bench-data.json"
    sizes = "--documents 3000 --documents-100m 20000 --gathered-documents 1000 --repetitions 2"
    subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "bench_data.py"), *sizes.split()),
            *("--large-repetitions", "2", "--output", str(output)),
        ],
        check=True,
        timeout=300,
    )
    result = orjson.loads(output.read_bytes())
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() >= ROWS
    assert len(rows) == len(result["rows"])
    for name, row in rows.items():
        assert row.keys() >= FIELDS, name
        assert row["value"] > 0 and row["unit"] == "s" and row["n"] > 0, name
        assert "bench_data.py --documents 3000" in row["command"]
        if row["baseline"] is None:
            assert row["baseline_value"] is None and row["ratio"] is None, name
        else:
            assert row["ratio"] == pytest.approx(row["baseline_value"] / row["value"]), name
    without_trl = find_spec("trl") is None
    assert (rows["pack_best_fit_776k"]["baseline"] is None) == without_trl
    assert result["machine"].keys() >= {"cpu", "cores", "memory_bytes", "packages", "commit"}


def test_bench_ops_checks_and_times_every_row(tmp_path: Path) -> None:
    output = tmp_path / "bench-ops.json"
    sizes = "--repetitions 1 --attention-repetitions 1 --largest-baseline 4096"
    subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "bench_ops.py"), *sizes.split()),
            *("--output", str(output)),
        ],
        check=True,
        timeout=300,
    )
    rows = {row["name"]: row for row in orjson.loads(output.read_bytes())["rows"]}
    assert rows.keys() >= OPS_ROWS
    assert all(row["value"] > 0 and row["unit"] == "s" for row in rows.values())
    without_baseline = {name for name, row in rows.items() if row["ratio"] is None}
    assert without_baseline == {"block_mask_32768", "block_mask_131072"}


def test_a_ratio_above_one_means_that_ours_is_better(result_file) -> None:
    fast, slow = result_file.summarize([2.0]), result_file.summarize([3.0, 4.0, 11.0])
    assert slow.median == 4.0 and slow.quartiles == (3.5, 7.5) and slow.repetitions == 3
    seconds = result_file.Row(name="a", n=1, value=fast, baseline="peer", baseline_value=slow)
    assert seconds.ratio == 2.0
    rate = result_file.Row(
        name="a", n=1, value=slow, unit="tokens/s", baseline="peer", baseline_value=fast
    )
    assert rate.ratio == 2.0


def test_a_peer_that_is_not_installed_is_null(result_file, capsys) -> None:
    row = result_file.Row(
        name="a", n=1, value=result_file.summarize([2.0]), baseline="peer", baseline_value=None
    )
    described = row.to_json("python x.py")
    assert described["baseline"] is described["baseline_value"] is described["ratio"] is None
    result_file.publish([row], None)
    assert capsys.readouterr().out.count("null") == 2


def test_the_fingerprint_names_every_package_or_null(result_file) -> None:
    machine = result_file.describe_machine()
    assert machine["cores"] >= 1 and machine["memory_bytes"] > 1 << 20
    assert isinstance(machine["packages"]["numpy"], str)
    assert {"torch", "megatron-core", "trl", "numba", "seqpacker"} <= machine["packages"].keys()


def test_measure_warms_up_and_counts_only_the_repetitions(result_file) -> None:
    calls = []
    timing = result_file.measure(lambda: calls.append(1), 5, warm_up=2)
    assert len(calls) == 7 and timing.repetitions == 5
    first, third = timing.quartiles
    assert 0 < first <= timing.median <= third
    assert timing.per(10).median == timing.median / 10


def test_a_corpus_is_the_same_every_time_and_as_large_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("DSM_SHARED", str(tmp_path / "absent"))
    corpus = importlib.import_module("corpus")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert [corpus.write_corpus(path, 20_000) for path in paths] == ["sample problems"] * 2
    assert paths[0].read_bytes() == paths[1].read_bytes()
    texts = [orjson.loads(line)["text"] for line in paths[0].read_bytes().splitlines()]
    assert 20_000 <= sum(len(text.encode()) for text in texts) < 21_000
