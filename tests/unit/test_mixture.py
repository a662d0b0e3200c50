"""Mixtures: how many of each source's examples stand in the dataset, and how often."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.data.preparation.mixture import share_out
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.errors import DsmError
from dsm_engine.recipes import validate_recipe


def make_recipe(*sources: dict, **values) -> PreprocessRecipe:
    described = [{"reader": "examples", "path": "x", **source} for source in sources]
    return validate_recipe(
        {"output": Path("out"), "tokenizer": Path("t"), "sources": described, **values},
        PreprocessRecipe,
        "recipe",
    )


def counts_of(recipe: PreprocessRecipe, available: list[int], source_idx: int = 0):
    """How often each available example of a source is taken."""
    share = share_out(recipe, available)[source_idx]
    passes = list(share.passes(seed=recipe.seed, source_idx=source_idx))
    return np.sum(passes, axis=0, dtype=int) if passes else np.zeros(share.available, int)


def test_without_a_mixture_every_example_stands_once():
    (share,) = share_out(make_recipe({}), [7])
    assert (share.chosen, share.documents, share.wanted) == (7, 7, 7)
    assert counts_of(make_recipe({}), [7]).tolist() == [1] * 7


def test_a_cap_takes_so_many_and_not_the_first():
    recipe = make_recipe({"cap": 40})
    counts = counts_of(recipe, [100])
    assert counts.sum() == 40
    assert set(counts.tolist()) == {0, 1}
    assert counts[40:].sum() > 0
    assert counts_of(recipe, [30]).tolist() == [1] * 30


def test_epochs_repeat_and_their_fraction_repeats_some():
    counts = counts_of(make_recipe({"epochs": 2.5}), [10])
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5
    assert sorted(counts_of(make_recipe({"epochs": 0.3}), [10]).tolist()) == [0] * 7 + [1] * 3


def test_another_seed_chooses_others_and_the_same_seed_the_same():
    first = counts_of(make_recipe({"cap": 50}, seed=1), [100])
    assert counts_of(make_recipe({"cap": 50}, seed=1), [100]).tolist() == first.tolist()
    assert counts_of(make_recipe({"cap": 50}, seed=2), [100]).tolist() != first.tolist()


def test_weights_share_out_the_size_that_is_asked_for():
    recipe = make_recipe({"weight": 3}, {"weight": 1}, mixture={"examples": 80})
    shares = share_out(recipe, [100, 100])
    assert [share.documents for share in shares] == [60, 20]


def test_weights_alone_make_the_largest_mixture_no_source_is_too_small_for():
    shares = share_out(make_recipe({"weight": 3}, {"weight": 1}), [90, 100])
    assert [share.documents for share in shares] == [90, 30]


def test_a_source_too_small_for_its_share_gives_what_it_has_and_says_so():
    recipe = make_recipe({"weight": 1, "epochs": 2}, {"weight": 1}, mixture={"examples": 80})
    shares = share_out(recipe, [10, 100])
    assert [(share.documents, share.wanted) for share in shares] == [(20, 40), (40, 40)]


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 60), st.one_of(st.none(), st.integers(1, 9))),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 200),
)
def test_shares_sum_to_the_size_and_no_source_gives_more_than_it_has(sources, size):
    described = [
        {"weight": weight, "cap": cap} if cap else {"weight": weight} for weight, _, cap in sources
    ]
    recipe = make_recipe(*described, mixture={"examples": size})
    shares = share_out(recipe, [available for _, available, _ in sources])
    assert sum(share.wanted for share in shares) == size
    for share, (_, available, cap) in zip(shares, sources, strict=True):
        assert share.documents <= min(available, cap or available)
        assert share.documents == min(share.wanted, min(available, cap or available))


def test_weights_for_some_sources_only_are_an_error():
    with pytest.raises(DsmError, match="give every source a weight, or none"):
        make_recipe({"weight": 1}, {})


def test_a_size_without_weights_is_an_error():
    with pytest.raises(DsmError, match=r"mixture\.examples: needs a weight for every source"):
        make_recipe({}, mixture={"examples": 5})
