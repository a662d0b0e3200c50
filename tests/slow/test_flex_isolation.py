"""Documents are isolated under FlexAttention too: its forward, which is all it has on a CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.verify_jobs import TP2_SP, run_jobs

pytestmark = [pytest.mark.slow, pytest.mark.multi]
# FlexAttention takes heads of 16 and more; each length is compiled for itself.
FLEX = [
    *("training.attention_backend=flex", "model.num_attention_heads=2", "model.num_query_groups=2"),
    *("--forward-only", "--packs", "1", "--documents", "2"),
]


def test_the_forward_of_flex_is_isolated_and_a_moved_boundary_is_found(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", data__seq_length=128, data__overlong="drop")
    jobs = {
        "tp1": ("--isolation", [*FLEX, "--packs", "2"], None),  # each rank for itself
        "tp2_sp": ("--isolation", [*TP2_SP, *FLEX], None),
        "moved": ("--isolation", [*TP2_SP, *FLEX, "--documents", "9"], "boundary one late"),
    }
    results = run_jobs(tmp_path, recipe, jobs, ranks=2)
    for job in ("tp1", "tp2_sp"):
        assert [rank["code"] for rank in results[job]] == [0, 0], results[job][0]["err"]
        assert "isolation: holds bit for bit" in results[job][0]["out"]
        assert "packed equals unpacked: holds within rounding" in results[job][0]["out"]
    assert [rank["code"] for rank in results["moved"]] == [2, 2]
    assert "documents are not isolated" in results["moved"][0]["err"]
