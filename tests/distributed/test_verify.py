"""`dsm verify --isolation` and `--gradients` on four ranks: they hold, find what is put in, and the
ranks agree."""

from pathlib import Path
from typing import Any

import pytest

from tests.verify_jobs import CP2, OVERLAP, PP2, PP2_VP2, PP4, TP2, TP2_SP, Job, run_jobs

pytestmark = pytest.mark.multi

ISOLATION, GRADIENTS = "--isolation", "--gradients"
ONE = ["--packs", "1", "--documents", "2"]
FORWARD = ["--packs", "1", "--forward-only"]
TIED = ["model.tie_word_embeddings=true"]

ISOLATED: dict[str, list[str]] = {
    "tp2": [*TP2, *ONE],
    "tp2_sp": [*TP2_SP, *ONE, "--precision", "both"],
    "tp2_sp_dense": [*TP2_SP, *ONE, "training.attention_backend=dense"],
    "dp4": ["--packs", "4", "--documents", "1", "--forward-only"],
    "dp4_one_pack": ["--packs", "1", "--documents", "1", "--forward-only"],
    "pp2": [*PP2, *ONE, *TIED],
    "pp2_interleaved": [*PP2_VP2, *ONE],
    "pp4": [*PP4, *ONE, "--precision", "both"],
    "cp2": [*CP2, *ONE, "--precision", "both"],
    "tp2_sp_pp2": [*TP2_SP, *PP2, *ONE, "parallel.recompute=full"],
    "tp2_sp_cp2": [*TP2_SP, *CP2, *ONE],
    "pp2_cp2": [*PP2, *CP2, *ONE],
}
LEAKING: dict[str, tuple[list[str], str]] = {
    "moved": ([*TP2_SP, *FORWARD], "boundary one late"),
    "leaking": ([*TP2_SP, *ONE], "gradients leak"),
    "dropped": ([*PP4, *FORWARD], "boundaries dropped on a middle stage"),
    "merged": ([*PP4, *FORWARD], "documents merged on a middle stage"),
    "merged_interleaved": ([*PP2_VP2, *FORWARD], "documents merged on a middle stage"),
    "merged_cp2": ([*CP2, *FORWARD], "documents merged on a context-parallel rank"),
    "leaking_pp4": ([*PP4, *ONE], "gradients leak on the last stage"),
}
ONE_GRADIENT: dict[str, list[str]] = {
    "gradients_dp4": OVERLAP,
    "gradients_dp4_replicated": ["parallel.use_distributed_optimizer=false", "--packs", "3"],
    "gradients_pp2_tied": [*PP2, *TIED],
    "gradients_pp2_interleaved": [*PP2_VP2, *OVERLAP],
    "gradients_pp4": PP4,
    "gradients_cp2": [*CP2, "--precision", "both", "--packs", "3"],
    "gradients_tp2_sp_pp2": [*TP2_SP, *PP2],
    "gradients_pp2_cp2": [*PP2, *CP2, "--packs", "2", "training.loss_weighting=document"],
}
ANOTHER_GRADIENT: dict[str, tuple[list[str], str]] = {
    "mean_of_micro_batches": (PP4, "average per micro-batch"),
    "mean_of_ranks": ([], "average per rank"),
    "divided_by_ranks": (CP2, "average over ranks"),
    "norms": (TP2_SP, "sequence-parallel sums left out"),
    "tied": ([*PP2, *TIED], "tied embedding left out"),
    "fewer": (PP2, "micro-batch dropped"),
    "noise": (PP4, "noise"),
}
JOBS: dict[str, Job] = {
    **{name: (ISOLATION, words, None) for name, words in ISOLATED.items()},
    **{name: (ISOLATION, *job) for name, job in LEAKING.items()},
    **{name: (GRADIENTS, words, None) for name, words in ONE_GRADIENT.items()},
    **{
        name: (GRADIENTS, [*words, "--packs", "2"], fault)
        for name, (words, fault) in ANOTHER_GRADIENT.items()
    },
    "heads": (ISOLATION, [*TP2, "model.num_query_groups=1"], None),
    "alignment": (GRADIENTS, ["parallel.context_parallel_size=2"], None),
}


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> dict[str, list[dict[str, Any]]]:
    """What each rank printed, by job: one torchrun launch of four ranks."""
    folder = tmp_path_factory.mktemp("verify")
    recipe = make_recipe(
        sample_data,
        folder / "run",
        data__seq_length=256,
        model__num_layers=4,
        training__global_batch_size=8,
    )
    return run_jobs(folder, recipe, JOBS, ranks=4)


@pytest.mark.parametrize("job", ISOLATED)
def test_documents_are_isolated_on_every_layout(results: Any, job: str) -> None:
    first, *others = results[job]
    assert [rank["code"] for rank in results[job]] == [0] * 4, first["err"]
    assert "isolation: holds bit for bit" in first["out"]
    assert "packed equals unpacked: holds within rounding" in first["out"]
    assert all(rank["out"] == rank["err"] == "" for rank in others)


def test_ranks_compare_their_own_parts_and_report_the_sum(results: Any) -> None:
    with_sp, without = (_compared(results[job][0]["out"]) for job in ("tp2_sp", "tp2"))
    # Each rank holds half of the vocabulary; without SP both hold the same losses and inputs.
    assert without["losses"] * 512 // 2 == without["logits"] == with_sp["logits"]
    assert without["losses"] * 32 == without["input gradients"]
    assert with_sp["input gradients"] * 2 == without["input gradients"]


def test_every_stage_and_chunk_is_compared(results: Any) -> None:
    for job, chunks in (("pp2", 2), ("pp2_interleaved", 4), ("pp4", 4)):
        compared = _compared(results[job][0]["out"])
        assert compared["logits"] == compared["losses"] * 512, "the last stage alone has them"
        assert compared["stage inputs"] == compared["losses"] * 32 * chunks
        assert compared["input gradients"] == compared["stage inputs"]
        assert compared["rotated keys"] == compared["losses"] * 2 * 8 * chunks
        assert "losses  " in results[job][0]["out"].split("isolation: holds")[1]


def test_context_parallel_ranks_share_the_tokens(results: Any) -> None:
    shared, with_sp = (_compared(results[job][0]["out"]) for job in ("cp2", "tp2_sp_cp2"))
    assert shared["losses"] * 32 == shared["stage inputs"] == with_sp["stage inputs"]
    assert with_sp["losses"] == 2 * shared["losses"], "both TP ranks have those of all tokens"


def test_packs_are_shared_by_data_parallel_ranks(results: Any) -> None:
    rows = [line.split() for line in results["dp4"][0]["out"].splitlines() if " logits " in line]
    assert len({row[0] for row in rows if row[0].isdigit()}) == 4


@pytest.mark.parametrize("job", LEAKING)
def test_a_leak_is_found_by_all_ranks(results: Any, job: str) -> None:
    first, *others = results[job]
    assert [rank["code"] for rank in results[job]] == [2] * 4
    (line,) = first["err"].splitlines()
    assert "documents are not isolated: other tokens in document" in line
    assert all(rank["out"] == rank["err"] == "" for rank in others)


def test_a_leak_of_gradients_is_found_where_the_forward_pass_is_right(results: Any) -> None:
    for job in ("leaking", "leaking_pp4"):
        moved = {row[3]: row[-1] for row in _rows(results[job][0]["out"])}
        assert moved["logits"] == "0" and moved["input"] != "0" and moved["parameter"] != "0"


def test_a_middle_stage_without_boundaries_moves_what_comes_after_it(results: Any) -> None:
    rows = {" ".join(row[3:-2]): row for row in _rows(results["dropped"][0]["out"])}
    moved = {kind: int(row[-1].replace(",", "")) for kind, row in rows.items()}
    assert moved["logits"] > 0 and moved["losses"] > 0
    compared = int(rows["stage inputs"][-2].replace(",", ""))
    # The first two stages get what they should; the two behind them do not.
    assert 0 < moved["stage inputs"] <= compared // 2


@pytest.mark.parametrize("job", ONE_GRADIENT)
def test_every_split_gives_one_gradient_on_every_layout(results: Any, job: str) -> None:
    first, *others = results[job]
    assert [rank["code"] for rank in results[job]] == [0] * 4, first["err"]
    assert "one gradient for every split: holds" in first["out"]
    assert "two runs of the packs as trained on: holds bit for bit" in first["out"]
    assert all(rank["out"] == rank["err"] == "" for rank in others)


@pytest.mark.parametrize("job", ANOTHER_GRADIENT)
def test_a_wrong_gradient_is_found_by_all_ranks(results: Any, job: str) -> None:
    first, *others = results[job]
    assert [rank["code"] for rank in results[job]] == [2] * 4
    (line,) = first["err"].splitlines()
    expected = {
        "fewer": "supervised tokens were counted, the documents have ",
        "noise": "the step is not deterministic",
        "norms": "layernorm.weight is apart from the documents' by ",
        "tied": "output_layer.weight is apart from the documents' by ",
    }
    assert expected.get(job, ": the gradient of ") in line
    assert all(rank["out"] == rank["err"] == "" for rank in others)


@pytest.mark.parametrize(
    ("job", "part"),
    [
        ("heads", "model.num_query_groups 1 is not divisible by TP 2"),
        ("alignment", "set data.alignment=4"),
    ],
)
def test_a_layout_that_does_not_fit_is_said_by_every_rank(
    results: Any, job: str, part: str
) -> None:
    for result in results[job]:
        assert result["code"] == 2
        (line,) = result["err"].splitlines()
        assert part in line


def _rows(printed: str) -> list[list[str]]:
    rows = [line.replace(" of ", "/").split() for line in printed.splitlines()]
    return [row for row in rows if len(row) > 5 and row[0].isdigit()]


def _compared(printed: str) -> dict[str, int]:
    """By kind of the first pack and precision, how many values were compared."""
    found: dict[str, int] = {}
    for row in _rows(printed):
        found.setdefault(" ".join(row[3:-2]), int(row[-2].replace(",", "")))
    return found
