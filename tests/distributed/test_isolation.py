"""`dsm verify --isolation` on two ranks: it holds, finds what is put in, and the ranks agree."""

from pathlib import Path
from typing import Any

import pytest

from tests.isolation_jobs import TP2, TP2_SP, Job, run_jobs

pytestmark = pytest.mark.multi

ONE_PACK = ["--packs", "1", "--documents", "3"]
JOBS: dict[str, Job] = {
    "tp2": ([*TP2, *ONE_PACK], None),
    "tp2_sp": ([*TP2_SP, *ONE_PACK, "--precision", "both"], None),
    "tp2_sp_dense": ([*TP2_SP, *ONE_PACK, "training.attention_backend=dense"], None),
    "dp2": (["--packs", "2", "--documents", "1", "--forward-only"], None),
    "dp2_one_pack": (["--packs", "1", "--documents", "1", "--forward-only"], None),
    "moved": ([*TP2_SP, *ONE_PACK[:2], "--forward-only"], "boundary one late"),
    "leaking": ([*TP2_SP, *ONE_PACK], "gradients leak"),
    "heads": ([*TP2, "model.num_query_groups=1"], None),
}


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> dict[str, list[dict[str, Any]]]:
    """What each rank printed, by job: one torchrun launch of two ranks."""
    folder = tmp_path_factory.mktemp("isolation")
    recipe = make_recipe(sample_data, folder / "run", data__seq_length=256)
    return run_jobs(folder, recipe, JOBS)


@pytest.mark.parametrize("job", ["tp2", "tp2_sp", "tp2_sp_dense", "dp2", "dp2_one_pack"])
def test_documents_are_isolated_on_every_layout(results: Any, job: str) -> None:
    first, second = results[job]
    assert (first["code"], second["code"]) == (0, 0), first["err"]
    assert "isolation: holds bit for bit" in first["out"]
    assert "packed equals unpacked: holds within rounding" in first["out"]
    assert second["out"] == "" and second["err"] == first["err"] == ""


def test_ranks_compare_their_own_parts_and_report_the_sum(results: Any) -> None:
    with_sp, without = (_compared(results[job][0]["out"]) for job in ("tp2_sp", "tp2"))
    # Each rank holds half of the vocabulary; without SP both hold the same losses and inputs.
    assert without["losses"] * 512 // 2 == without["logits"] == with_sp["logits"]
    assert without["losses"] * 32 == without["input gradients"]
    assert with_sp["input gradients"] * 2 == without["input gradients"]


def test_packs_are_shared_by_data_parallel_ranks(results: Any) -> None:
    rows = [line.split() for line in results["dp2"][0]["out"].splitlines() if " logits " in line]
    assert len({row[0] for row in rows if row[0].isdigit()}) == 2


def test_a_moved_boundary_is_found_under_sequence_parallelism(results: Any) -> None:
    first, second = results["moved"]
    assert (first["code"], second["code"]) == (2, 2)
    (line,) = first["err"].splitlines()
    assert "documents are not isolated: other tokens in document" in line
    assert second["err"] == second["out"] == ""


def test_a_leak_of_gradients_is_found_under_sequence_parallelism(results: Any) -> None:
    first, second = results["leaking"]
    assert (first["code"], second["code"]) == (2, 2)
    moved = {row[3]: row[-1] for row in _rows(first["out"])}
    assert moved["logits"] == "0" and moved["input"] != "0" and moved["parameter"] != "0"


def test_a_layout_that_does_not_fit_is_said_by_every_rank(results: Any) -> None:
    for result in results["heads"]:
        assert result["code"] == 2
        (line,) = result["err"].splitlines()
        assert "model.num_query_groups 1 is not divisible by TP 2" in line


def _rows(printed: str) -> list[list[str]]:
    rows = [line.replace(" of ", "/").split() for line in printed.splitlines()]
    return [row for row in rows if len(row) > 5 and row[0].isdigit()]


def _compared(printed: str) -> dict[str, int]:
    """By kind of the first pack and precision, how many values were compared."""
    found: dict[str, int] = {}
    for row in _rows(printed):
        found.setdefault(" ".join(row[3:-2]), int(row[-2].replace(",", "")))
    return found
