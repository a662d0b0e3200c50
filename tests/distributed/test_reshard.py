"""A checkpoint of any layout loads under any other, bit for bit, and training goes on."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dsm_engine.training.metrics import read_metrics

pytestmark = pytest.mark.multi

WORKER = Path(__file__).with_name("reshard_worker.py")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout and the processes it takes."""

    world_size: int
    parallel: dict[str, Any]


_OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
_TP2 = {"tensor_model_parallel_size": 2}
_TP2_SP = {**_TP2, "sequence_parallel": True}
_PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS = {
    "one": Layout(world_size=1, parallel={}),
    "dp2_replicated": Layout(world_size=2, parallel={"use_distributed_optimizer": False}),
    "dp2_overlap": Layout(world_size=2, parallel=_OVERLAP),
    "tp2": Layout(world_size=2, parallel=_TP2),
    "tp2_sp": Layout(world_size=2, parallel=_TP2_SP),
    "pp2": Layout(world_size=2, parallel=_PP2),
    "pp2_interleaved": Layout(
        world_size=2, parallel={**_PP2, "virtual_pipeline_model_parallel_size": 2}
    ),
    "cp2": Layout(world_size=2, parallel={"context_parallel_size": 2}),
    "tp2_sp_pp2": Layout(world_size=4, parallel={**_TP2_SP, **_PP2}),
    "tp2_sp_dp2": Layout(world_size=4, parallel=_TP2_SP),
    "pp2_dp2": Layout(world_size=4, parallel=_PP2),
}
FAST = ["one", "dp2_replicated", "dp2_overlap", "tp2_sp", "pp2_interleaved", "cp2"]
VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bf16_": ({"training__precision": "bf16"}, ["one", "dp2_replicated", "dp2_overlap", "tp2"]),
    "tied_": (
        {"model__tie_word_embeddings": True},
        ["one", "tp2", "pp2", "pp2_interleaved", "dp2_replicated", "dp2_overlap"],
    ),
}
"""What else a model may be, and the layouts it is tried under."""
FAST_TIED = ["one", "dp2_replicated", "dp2_overlap"]
"""With one embedding less, a slice of the optimizer's buffer ends within a row."""
CHAIN = {"dp2": 2, "dp1": 1, "dp4": 4}
"""Data-parallel ranks of a run that is resumed twice, two steps each."""
FAILING = {"sync": {"1": [2]}, "async": {"1": [2]}, "last": {"1": [4]}}
"""Runs of two ranks: on which rank the saves of which steps fail."""


class Table:
    """What one launch of the worker has left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result(self, source: str, target: str) -> dict[str, Any]:
        path = self.folder / f"{target}.json"
        return json.loads(path.read_text(encoding="utf-8"))[source]

    def summary(self) -> dict[str, dict[str, dict[str, int]]]:
        """Target -> source -> numbers of tensors, over all tables of the launch."""
        return {
            path.stem: {
                source: {"tensors": result["num_tensors"], "differ": len(result["others"])}
                for source, result in json.loads(path.read_text(encoding="utf-8")).items()
            }
            for path in sorted(self.folder.glob("*.json"))
            if path.stem.removeprefix("bf16_").removeprefix("tied_") in LAYOUTS
        }

    def steps(self, run: str) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.folder / run) if line["kind"] == "step"]


class _Jobs:
    """Collects the jobs of one launch."""

    def __init__(self, make: Any, data: Path, folder: Path) -> None:
        self._make = make
        self._data = data
        self._folder = folder
        self.phases: list[list[dict[str, Any]]] = [[], [], []]

    def recipe(self, run: str, layout: Layout, *, steps: int, **changes: Any) -> dict[str, Any]:
        return self._make(
            self._data,
            self._folder / run,
            parallel=layout.parallel,
            training__steps=steps,
            model__num_layers=4,
            model__hidden_size=40,
            data__alignment=4,
            data__validation=None,
            **changes,
        )

    def train(self, phase: int, run: str, layout: Layout, *, steps: int, **more: Any) -> None:
        recipe = self.recipe(run, layout, steps=steps, **more.pop("changes", {}))
        if "begin" in more:
            more["from"] = str(self._folder / more.pop("begin"))
        self.phases[phase].append({"world_size": layout.world_size, "train": recipe, **more})

    def table(self, layouts: list[str], prefix: str = "", **changes: Any) -> None:
        """Two steps under every layout; then each loads what each has saved."""
        for name in layouts:
            self.train(0, f"{prefix}{name}", LAYOUTS[name], steps=2, changes=changes)
            again = self.recipe(f"{prefix}{name}_again", LAYOUTS[name], steps=2, **changes)
            runs = {source: str(self._folder / f"{prefix}{source}") for source in layouts}
            self.phases[1].append(
                {
                    "world_size": LAYOUTS[name].world_size,
                    "load": again,
                    "sources": runs,
                    "output": str(self._folder / f"{prefix}{name}.json"),
                }
            )

    def resumed(self, layouts: list[str]) -> None:
        """Two steps under each layout behind two of one process, and the other way round."""
        for name in layouts:
            self.train(1, f"one_{name}", LAYOUTS[name], steps=4, begin="one")
            self.train(1, f"{name}_one", LAYOUTS["one"], steps=4, begin=name)

    def launch(self, num_processes: int) -> Table:
        """Small worlds of a phase take turns on the processes."""
        for jobs in self.phases:
            begin = 0
            for job in jobs:
                world_size = job.pop("world_size")
                begin = begin if begin + world_size <= num_processes else 0
                job["ranks"] = list(range(begin, begin + world_size))
                begin += world_size
        jobs_file = self._folder / "jobs.json"
        jobs_file.write_text(json.dumps(self.phases), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node", str(num_processes), str(WORKER), str(jobs_file)],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return Table(self._folder)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Table:
    """A table of layouts for up to two ranks, and runs whose saves fail on one of two."""
    jobs = _Jobs(make_recipe, sample_data, tmp_path_factory.mktemp("reshard_fast"))
    jobs.table(FAST)
    jobs.table(FAST_TIED, "tied_", **VARIANTS["tied_"][0])
    jobs.train(0, "whole", LAYOUTS["one"], steps=4)
    jobs.resumed(["dp2_overlap"])
    for name, fails in FAILING.items():
        saving = {"logging": {"save_every": 1, "tensorboard": False, "save_async": name != "sync"}}
        jobs.train(0, name, LAYOUTS["dp2_overlap"], steps=4, fails=fails, changes=saving)
    return jobs.launch(2)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Table:
    """The whole table, its variants, and a run under three data-parallel sizes.

    With DSM_TABLES=FOLDER the table of docs/parallelism.md goes to FOLDER/reshard.json: of each
    source and target the tensors, and how many of them differ.
    """
    jobs = _Jobs(make_recipe, sample_data, tmp_path_factory.mktemp("reshard"))
    jobs.table(list(LAYOUTS))
    for prefix, (changes, layouts) in VARIANTS.items():
        jobs.table(layouts, prefix, **changes)
    jobs.train(0, "whole", LAYOUTS["one"], steps=6)
    jobs.resumed([name for name in LAYOUTS if name != "one"])
    before: dict[str, str] = {}
    for phase, (name, world_size) in enumerate(CHAIN.items()):
        layout = Layout(world_size=world_size, parallel=_OVERLAP)
        jobs.train(phase, name, layout, steps=2 * (phase + 1), **before)
        before = {"begin": name}
    table = jobs.launch(4)
    if "DSM_TABLES" in os.environ:
        path = Path(os.environ["DSM_TABLES"]) / "reshard.json"
        path.write_text(json.dumps(table.summary(), indent=1) + "\n", encoding="utf-8")
    return table


def _whole_and_bitwise(table: Table, prefix: str, source: str, target: str) -> None:
    result = table.result(source, f"{prefix}{target}")
    # 4 layers of 6 parameters, embedding, last norm and output layer, and their states.
    num_states = 4 if prefix == "bf16_" else 3
    assert result["num_tensors"] == (26 if prefix == "tied_" else 27) * num_states
    assert result["others"] == []
    assert result["updates"] == [2, 2]


@pytest.mark.parametrize(("source", "target"), product(FAST, FAST))
def test_what_one_layout_saves_another_loads_bit_for_bit(
    fast: Table, source: str, target: str
) -> None:
    _whole_and_bitwise(fast, "", source, target)


@pytest.mark.parametrize(("source", "target"), product(FAST_TIED, FAST_TIED))
def test_what_one_layout_of_a_tied_model_saves_another_loads_bit_for_bit(
    fast: Table, source: str, target: str
) -> None:
    _whole_and_bitwise(fast, "tied_", source, target)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), product(LAYOUTS, LAYOUTS))
def test_what_any_layout_saves_any_other_loads_bit_for_bit(
    slow: Table, source: str, target: str
) -> None:
    _whole_and_bitwise(slow, "", source, target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "source", "target"),
    [
        (prefix, source, target)
        for prefix, (_, layouts) in VARIANTS.items()
        for source, target in product(layouts, layouts)
    ],
)
def test_bf16_and_tied_models_load_bit_for_bit_too(
    slow: Table, prefix: str, source: str, target: str
) -> None:
    _whole_and_bitwise(slow, prefix, source, target)


def _like_one_process(
    table: Table, layouts: list[str], read_tensors: Any, prefix: str = ""
) -> None:
    """Every layout has stored each number in the same place of the same tensor."""
    expected = read_tensors(table.folder / f"{prefix}one" / "checkpoints" / "step_00000002")
    for name in layouts:
        found = read_tensors(table.folder / f"{prefix}{name}" / "checkpoints" / "step_00000002")
        assert sorted(found) == sorted(expected)
        for key, tensor in expected.items():
            # Two steps of fp32 sums in another order; squares double a relative error.
            error = torch.linalg.vector_norm(found[key] - tensor)
            assert error <= 1e-4 * torch.linalg.vector_norm(tensor), (name, key)


def test_every_layout_stores_what_one_process_stores(fast: Table, read_tensors: Any) -> None:
    _like_one_process(fast, FAST, read_tensors)
    _like_one_process(fast, FAST_TIED, read_tensors, "tied_")


@pytest.mark.slow
def test_every_layout_of_the_list_stores_what_one_process_stores(
    slow: Table, read_tensors: Any
) -> None:
    _like_one_process(slow, list(LAYOUTS), read_tensors)
    _like_one_process(slow, VARIANTS["tied_"][1], read_tensors, "tied_")


def test_a_slice_of_an_optimizers_buffer_ends_within_a_row(fast: Table) -> None:
    folder = fast.folder / "tied_dp2_overlap" / "checkpoints" / "step_00000002"
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    parts = [
        chunk
        for tensor in stored.values()
        if isinstance(tensor, TensorStorageMetadata) and len(tensor.size) == 2
        for chunk in tensor.chunks
        if chunk.sizes[1] < tensor.size[1]
    ]
    assert parts, "no row is split, so the table shows less than it should"


@pytest.mark.parametrize("layout", ["dp2_replicated", "dp2_overlap"])
def test_ranks_that_hold_the_same_share_the_writing(fast: Table, layout: str) -> None:
    folder = fast.folder / layout / "checkpoints" / "step_00000002"
    sizes = [(folder / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)]
    assert max(sizes) < 1.1 * min(sizes)


def _same_steps(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for mine, other in zip(found, expected, strict=True):
        for key in ("num_tokens", "num_supervised", "consumed_samples", "epoch", "lr"):
            assert mine[key] == other[key], key
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("run", ["one_dp2_overlap", "dp2_overlap_one"])
def test_training_goes_on_under_another_layout(fast: Table, run: str) -> None:
    _same_steps(fast.steps(run), fast.steps("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_training_goes_on_behind_one_process_and_before_it(slow: Table, layout: str) -> None:
    whole = slow.steps("whole")[:4]
    _same_steps(slow.steps(f"one_{layout}"), whole)
    _same_steps(slow.steps(f"{layout}_one"), whole)


@pytest.mark.slow
def test_two_ranks_then_one_then_four_see_the_same_examples(slow: Table) -> None:
    _same_steps(slow.steps("dp4"), slow.steps("whole"))


def test_a_save_that_fails_on_one_of_two_ranks_fails_on_both_and_training_goes_on(
    fast: Table,
) -> None:
    for name in ("sync", "async"):
        ends = [
            json.loads((fast.folder / f"{name}.{rank}.json").read_text(encoding="utf-8"))
            for rank in (0, 1)
        ]
        assert ends == ["step_00000004"] * 2
        folder = fast.folder / name / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == [
            "latest",
            "step_00000003",
            "step_00000004",
        ]
        lines = read_metrics(fast.folder / name)
        failed = [line for line in lines if line["kind"] == "save_failed"]
        assert [line["step"] for line in failed] == [2]
        assert failed[0]["fault"].startswith("rank 1: ")


def test_the_last_save_that_fails_on_one_of_two_ranks_ends_both(fast: Table) -> None:
    ends = [
        json.loads((fast.folder / f"last.{rank}.json").read_text(encoding="utf-8"))
        for rank in (0, 1)
    ]
    assert ends[0] == ends[1]
    assert "step_00000004: the last checkpoint of the run cannot be written (rank 1: " in ends[0]
