"""Steps with a loss or a gradient that is not finite, and loss spikes, in one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.numpy import load_file as load_arrays

from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.training import loop
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.faults.exits import NON_FINITE, NonFiniteStep
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics
from dsm_engine.training.replay import replay
from dsm_engine.training.stream import PackStream
from tests.faults.poisoned import write_poisoned_data, write_poisoned_weights
from tests.layout_runs import lines, weights

DOCUMENT = 40  # of the poisoned data; its pack comes in BAD_STEP
STEPS, BAD_STEP = 7, 6
Make = Any


@pytest.fixture(scope="module")
def poisoned(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Make
) -> dict[str, Any]:
    """A recipe under whose weights one document is not finite."""
    folder = tmp_path_factory.mktemp("poisoned")
    token = write_poisoned_data(sample_data, folder / "data", document=DOCUMENT)
    first = make_recipe(folder / "data", folder / "first", training__steps=1)
    convert(_train(first), folder / "whole")
    write_poisoned_weights(folder / "whole", folder / "bad", token=token, value=float("nan"))
    recipe = make_recipe(
        folder / "data",
        folder / "run",
        initialize_from=str(folder / "bad"),
        training__steps=STEPS,
        training__lr=1e-4,
    )
    return {**recipe, "model": None}


def _train(recipe: dict[str, Any], **keywords: Any) -> Path:
    return train(TrainRecipe.model_validate(recipe), **keywords)


def _ledger(run: Path) -> list[dict[str, Any]]:
    path = run / "faults.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@contextmanager
def _changed_step(
    monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], change: Callable[..., Any]
) -> Iterator[None]:
    """Hands chunks and loss of these steps to `change` before anyone looks at them."""
    whole, original = {"step": 0}, loop.forward_backward
    train_step = loop._Run._train_step

    def counted(run: Any) -> Any:
        whole["step"] = run._step + 1
        return train_step(run)

    def changed(chunks: Any, *arguments: Any, forward_only: bool = False, **keywords: Any) -> Any:
        loss = original(chunks, *arguments, forward_only=forward_only, **keywords)
        if not forward_only and whole["step"] in steps:
            return change(chunks, loss) or loss
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_train_step", counted)
        patch.setattr(loop, "forward_backward", changed)
        yield


def _overflow(chunks: Any, loss: Any) -> None:
    """One element of one gradient is infinite."""
    _, parameter = next(iter(chunks[0].module.named_parameters()))
    parameter.main_grad.view(-1)[7] = float("inf")


def test_the_examples_of_a_step_that_is_not_finite_are_named_and_dumped(
    poisoned: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = {**poisoned, "run": str(run)}
    recipe["logging"] = {**recipe["logging"], "save_every": 2, "validate_every": 1000}
    with pytest.raises(
        NonFiniteStep, match=rf"step {BAD_STEP}: loss is nan; .*document {DOCUMENT} "
    ):
        _train(recipe)
    assert NonFiniteStep.exit_code == NON_FINITE
    (line,) = _ledger(run)
    assert (line["kind"], line["step"], line["action"]) == ("non_finite", BAD_STEP, "aborted")
    losses = {
        document: loss
        for pack in line["packs"]
        for document, loss in zip(pack["documents"], pack["losses"], strict=True)
    }
    assert losses.pop(DOCUMENT) == "nan"
    assert losses and all(isinstance(loss, float) for loss in losses.values())
    _assert_dump_holds_the_documents(run, line, Path(recipe["data"]["train"]))
    assert (run / "checkpoints" / "latest").read_text() == "step_00000004\n"
    assert [step["step"] for step in lines(run, "step")] == list(range(1, BAD_STEP))

    listing = _files(run)
    said: list[str] = []
    replay(TrainRecipe.model_validate(recipe), BAD_STEP, tell=said.append)
    assert said[0].endswith("step_00000004, step 4") and said[1] == "step 5 done again"
    assert f"pack {_pack_of(line, DOCUMENT)}, document {DOCUMENT}: loss nan" in said
    assert "weights that are not finite before the step: embedding.word_embeddings.weight" in said
    by_pack = [text for text in said if text.startswith("pack") and "gradients" in text]
    assert [text.split(":")[0] for text in by_pack] == [f"pack {_pack_of(line, DOCUMENT)}"]
    assert "order: output_layer.weight, " in by_pack[0]
    assert _files(run) == listing

    with pytest.raises(
        DsmError, match=rf"no such dump; this run has dumps of steps \[{BAD_STEP}\]"
    ):
        replay(TrainRecipe.model_validate(recipe), 1, tell=said.append)
    recipe["seed"] = 6
    with pytest.raises(DsmError, match="another stream of examples"):
        replay(TrainRecipe.model_validate(recipe), BAD_STEP, tell=said.append)


def test_a_replayed_step_has_the_loss_it_had(
    sample_data: Path, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", logging__save_every=2)
    with _changed_step(monkeypatch, (4,), _overflow), pytest.raises(NonFiniteStep):
        _train(recipe)
    _train({**recipe, "run": str(tmp_path / "whole")})
    said: list[str] = []
    replay(TrainRecipe.model_validate(recipe), 4, tell=said.append)
    step = lines(tmp_path / "whole", "step")[3]
    assert f"step 4: loss {step['loss']}, gradient norm {step['grad_norm']}" in said
    assert said[-1] == "everything is finite: the fault did not come again"


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_gone_over_moves_no_weight_and_no_moment(
    sample_data: Path,
    make_recipe: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    precision: str,
) -> None:
    def spoil(chunks: Any, loss: Any) -> Any:
        _overflow(chunks, loss)
        return replace(loss, weighted_total=float("inf")) if what == "loss" else None

    states: list[dict[str, torch.Tensor]] = []
    train_step = loop._Run._train_step

    def watched(run: Any) -> Any:
        metrics = train_step(run)
        states.append(_state(run))
        return metrics

    monkeypatch.setattr(loop._Run, "_train_step", watched)
    recipe = make_recipe(sample_data, tmp_path / "run", training__precision=precision)
    recipe["faults"] = {"non_finite": "skip"}
    with _changed_step(monkeypatch, (3,), spoil):
        _train(recipe)
    unchanged = [_equal(before, after) for before, after in pairwise(states)]
    assert unchanged == [False, True, False, False]
    (line,) = _ledger(tmp_path / "run")
    assert (line["what"], line["action"], line["step"]) == (what, "skipped", 3)
    kinds = [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "run")]
    assert ("skipped", 3) in kinds and ("step", 3) not in kinds and ("step", 4) in kinds


def test_a_run_with_a_step_gone_over_is_the_run_that_never_saw_its_packs(
    sample_data: Path, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    recipe["faults"] = {"non_finite": "skip"}
    with _changed_step(monkeypatch, (3,), _overflow):
        _train(recipe)
    packs_of_step = PackStream.packs_of_step

    def without_the_third(stream: PackStream, step: int, size: int) -> list[int]:
        return packs_of_step(stream, step if step < 2 else step + 1, size)

    monkeypatch.setattr(PackStream, "packs_of_step", without_the_third)
    other = make_recipe(sample_data, tmp_path / "other", training__steps=4)
    _train(other)
    mine, theirs = weights(tmp_path / "run"), weights(tmp_path / "other")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    steps = [line["loss"] for line in lines(tmp_path / "run", "step")]
    assert steps == [line["loss"] for line in lines(tmp_path / "other", "step")]


def test_steps_gone_over_before_a_resumption_count(
    sample_data: Path, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", training__steps=3)
    recipe["faults"] = {"non_finite": "skip", "max_skipped": 1}
    with _changed_step(monkeypatch, (2, 4), _overflow):
        _train(recipe)
        recipe["training"]["steps"] = 5
        with pytest.raises(NonFiniteStep, match=r"step 4: .*1 steps have been gone over"):
            _train(recipe, resume=True)
    assert [line["action"] for line in _ledger(tmp_path / "run")] == ["skipped", "aborted"]


def test_a_loss_spike_is_flagged_with_its_examples_and_stops_nothing(
    sample_data: Path, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", training__steps=7)
    recipe["faults"] = {"spike_window": 8}
    with _changed_step(
        monkeypatch, (6,), lambda _, loss: replace(loss, weighted_total=loss.weighted_total * 2)
    ):
        _train(recipe)
    (line,) = _ledger(tmp_path / "run")
    steps = lines(tmp_path / "run", "step")
    assert (line["kind"], line["step"], len(steps)) == ("spike", 6, 7)
    assert line["median"] == np.median([step["loss"] for step in steps[:5]])
    assert line["loss"] == steps[5]["loss"]
    # The losses of the documents are those the step's mean is made of.
    dataset = TokenizedDataset(Path(recipe["data"]["train"]))
    documents = [d for pack in line["packs"] for d in pack["documents"]]
    losses = [loss for pack in line["packs"] for loss in pack["losses"]]
    counts = [_num_labels(dataset, document) for document in documents]
    assert sum(counts) == steps[5]["num_supervised"]
    assert np.dot(losses, counts) / sum(counts) == pytest.approx(steps[5]["loss"] / 2, rel=1e-6)


def _num_labels(dataset: TokenizedDataset, document: int) -> int:
    """Supervised tokens but the first of the document, which nothing predicts."""
    return sum(int(end) - max(int(begin), 1) for begin, end in dataset.spans(document))


def _assert_dump_holds_the_documents(run: Path, line: dict[str, Any], train: Path) -> None:
    dataset = TokenizedDataset(train)
    arrays = load_arrays((run / line["dump"]).with_suffix(".safetensors"))
    assert len(arrays["tokens"]) == len(line["packs"]) == 4
    for row, pack in enumerate(line["packs"]):
        assert arrays["pack"][row][0] == pack["pack"]
        ends = arrays["cu_seqlens"][row]
        for place, document in enumerate(pack["documents"]):
            tokens = arrays["tokens"][row][ends[place] : ends[place + 1]]
            assert np.array_equal(tokens, dataset.document(document))


def _pack_of(line: dict[str, Any], document: int) -> int:
    return next(pack["pack"] for pack in line["packs"] if document in pack["documents"])


def _files(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}


def _state(run: Any) -> dict[str, torch.Tensor]:
    """Weights, main weights, moments and step counters."""
    state = {name: p.detach().clone() for name, p in run._chunks[0].named_parameters()}
    for number, member in enumerate(run._optimizer.chained_optimizers):
        inner = member.optimizer
        for place, parameter in enumerate(p for g in inner.param_groups for p in g["params"]):
            state[f"main/{number}/{place}"] = parameter.detach().clone()
            for name, value in inner.state[parameter].items():
                state[f"{name}/{number}/{place}"] = torch.as_tensor(value).clone()
    return state


def _equal(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert mine.keys() == other.keys() and any(name.startswith("exp_avg") for name in mine)
    return all(torch.equal(mine[name], other[name]) for name in other)
