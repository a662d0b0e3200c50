"""What a run of one rank reports: sums that add up, weights, phases, an evaluation in between."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.pack_order import PackOrder
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics
from dsm_engine.training.phases import PHASES

ATTRIBUTES = ("source", "language", "format", "topic")


def _train(recipe: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    train(TrainRecipe.model_validate(recipe), **options)
    return read_metrics(Path(recipe["run"]))


def _of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def lines(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any
) -> list[dict[str, Any]]:
    """The metrics of a run with validation, checkpoints and a given peak."""
    folder = tmp_path_factory.mktemp("metrics")
    recipe = make_recipe(sample_data, folder / "run", training__steps=4, logging__save_every=2)
    recipe["logging"]["peak_flops"] = 1e9
    return _train(recipe)


def test_slices_of_every_attribute_add_up_to_the_step(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        if line["kind"] not in ("step", "validation"):
            continue
        loss = line["token_loss"] if line["kind"] == "step" else line["loss"]
        counts = set()
        for attribute in ATTRIBUTES:
            slices = [
                values
                for name, values in line["slices"].items()
                if name.startswith(f"{attribute}/")
            ]
            count = sum(values["tokens"] for values in slices)
            counts.add(count)
            # Sums of float64 over fp32 losses against the fp32 sum of about 1,000 of them.
            mean = sum(values["loss"] * values["tokens"] for values in slices) / count
            assert mean == pytest.approx(loss, rel=1e-6)
        if line["kind"] == "step":
            assert counts == {line["num_supervised"]}
        assert len(counts) == 1
        assert sum(name.startswith("format/") for name in line["slices"]) > 1, "one slice is none"


def test_a_validation_loss_by_slice_is_that_of_its_documents(
    sample_data: Path, lines: list[dict[str, Any]]
) -> None:
    dataset = TokenizedDataset(sample_data / "validation")
    supervised: dict[str, int] = defaultdict(int)
    for document in range(dataset.num_documents):
        spans = dataset.spans(document)
        attributes = dataset.attributes(document)
        count = int((spans[:, 1] - np.maximum(spans[:, 0], 1)).sum())
        for name in ATTRIBUTES:
            supervised[f"{name}/{getattr(attributes, name) or '(none)'}"] += count
    validation = _of_kind(lines, "validation")[-1]
    found = {name: values["tokens"] for name, values in validation["slices"].items()}
    assert {n: c for n, c in found.items() if not n.startswith("all/")} == supervised


def test_a_step_says_where_its_time_went_and_how_fast_it_was(lines: list[dict[str, Any]]) -> None:
    for line in _of_kind(lines, "step"):
        times = line["time_s"]
        assert tuple(times) == PHASES and all(seconds > 0 for seconds in times.values())
        assert sum(times.values()) == pytest.approx(line["step_time_s"])
        assert line["num_slots"] == 4 * 512 > line["num_tokens"] > line["num_supervised"]
        assert line["slots_per_s_per_gpu"] * line["step_time_s"] == pytest.approx(4 * 512)
        assert line["tokens_per_s_per_gpu"] * line["step_time_s"] == pytest.approx(
            line["num_tokens"]
        )
        assert line["memory_peak_bytes"] > 50 << 20
        assert line["mfu"] > 0
    # The least of each phase over the steps: a busy machine stretches single ones.
    least = {p: min(line["time_s"][p] for line in _of_kind(lines, "step")) for p in PHASES}
    assert max(least, key=lambda phase: least[phase]) == "forward_backward"
    waits = _of_kind(lines, "checkpoint")
    assert [line["step"] for line in waits] == [2, 4] and all(line["wait_s"] > 0 for line in waits)


def test_the_mfu_is_the_formulas(sample_data: Path, make_recipe: Any, lines: Any) -> None:
    from dsm_engine.model.config import ModelConfig
    from dsm_engine.model.flops import model_flops

    recipe = TrainRecipe.model_validate(make_recipe(sample_data, Path("unused")))
    assert isinstance(recipe.model, ModelConfig)
    dataset = TokenizedDataset(sample_data / "train")
    packs = build_pack_index(dataset.lengths, capacity=512, strategy="random", seed=5)
    order = PackOrder(packs.num_packs, 5)
    for step, line in enumerate(_of_kind(lines, "step")):
        documents = np.concatenate([packs.pack(order.pack_at(step * 4 + i)) for i in range(4)])
        flops = model_flops(recipe.model, dataset.lengths[documents], num_slots=4 * 512)
        assert line["mfu"] == pytest.approx(flops / line["step_time_s"] / 1e9)


def test_without_a_known_peak_there_is_no_mfu_and_slices_can_be_left_out(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run", training__steps=1, logging__slices=False)
    (step,) = _of_kind(_train(recipe), "step")
    assert step["mfu"] is None and step["slices"] == {}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """A Hugging Face folder of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    recipe = make_recipe(sample_data, folder / "run", training__steps=1, seed=6)
    recipe["logging"]["save_initial"] = True
    _train(recipe)
    convert(folder / "run" / "checkpoints" / "step_00000000", folder / "hf")
    return folder / "hf"


@pytest.mark.parametrize(
    ("weighting", "strategy", "capacity", "batch_size"),
    [
        ("document", "random", 512, 16),
        ("document", "concat_split", 96, 64),
        ("example", "concat_split", 96, 64),
    ],
)
def test_weighted_losses_and_gradients_are_those_of_a_plain_reference(
    tmp_path: Path,
    sample_data: Path,
    make_recipe: Any,
    weights: Path,
    weighting: str,
    strategy: str,
    capacity: int,
    batch_size: int,
) -> None:
    from transformers import LlamaForCausalLM

    recipe = make_recipe(sample_data, tmp_path / "run", training__steps=1)
    recipe["training"] |= {"loss_weighting": weighting, "global_batch_size": batch_size}
    recipe["data"] |= {"strategy": strategy, "seq_length": capacity}
    del recipe["model"], recipe["data"]["validation"]
    recipe["initialize_from"] = str(weights)
    (step,) = _of_kind(_train(recipe), "step")

    dataset = TokenizedDataset(sample_data / "train")
    packs = build_pack_index(dataset.lengths, capacity=capacity, strategy=strategy, seed=5)
    order = PackOrder(packs.num_packs, 5)
    model = LlamaForCausalLM.from_pretrained(weights)
    units: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for place in range(batch_size):
        pack_idx = order.pack_at(place)
        for document, begin, end in _pieces(dataset, packs, pack_idx):
            losses = _losses(model, dataset, document, begin, end)
            unit = document if weighting == "example" else (document, place)
            if len(losses):
                units[unit].append(losses)
    assert packs.num_packs >= batch_size, "no pack comes twice"
    if strategy == "concat_split":
        assert any(len(pieces) > 1 for pieces in units.values()) == (weighting == "example")
    means = torch.stack([torch.cat(pieces).mean() for pieces in units.values()])
    means.mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert step["loss"] == pytest.approx(means.mean().item(), rel=2e-6)
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-5)
    tokens = torch.cat([torch.cat(pieces) for pieces in units.values()])
    assert step["num_supervised"] == len(tokens)
    assert step["token_loss"] == pytest.approx(tokens.mean().item(), rel=2e-6)
    assert abs(step["loss"] - step["token_loss"]) > 1e-4, "weights are idle"


def _pieces(dataset: TokenizedDataset, packs: Any, pack_idx: int) -> list[tuple[int, int, int]]:
    """(document, begin, end) of what stands in a pack."""
    pieces, room = [], packs.capacity
    for i, document in enumerate(packs.pack(pack_idx).tolist()):
        begin = int(packs.begins[pack_idx]) if packs.begins is not None and i == 0 else 0
        end = min(int(dataset.lengths[document]), begin + room)
        room -= end - begin
        pieces.append((document, begin, end))
    return pieces


def _losses(model: Any, dataset: TokenizedDataset, document: int, begin: int, end: int) -> Any:
    """Losses of the supervised tokens of a piece, which sees nothing before it."""
    ids = torch.from_numpy(dataset.document(document).astype(np.int64))
    supervised = torch.zeros(len(ids) + 1, dtype=torch.bool)
    for first, last in dataset.spans(document).tolist():
        supervised[first:last] = True
    logits = model(ids[None, begin:end]).logits[0]
    labels = torch.cat([ids, ids[:1]])[begin + 1 : end + 1]
    chosen = supervised[begin + 1 : end + 1]
    return torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none")


@pytest.mark.parametrize("weighting", ["token", "example", "document"])
def test_another_split_into_packs_gives_the_same_weighted_step(
    tmp_path: Path, sample_data: Path, make_recipe: Any, weighting: str
) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    steps = []
    for capacity in (512, 1024):
        packs = build_pack_index(dataset.lengths, capacity=capacity, strategy="random", seed=5)
        recipe = make_recipe(sample_data, tmp_path / f"{capacity}", training__steps=1)
        recipe["data"]["seq_length"] = capacity
        recipe["training"] |= {
            "loss_weighting": weighting,
            "global_batch_size": packs.num_packs,  # all documents once
        }
        del recipe["data"]["validation"]
        steps += _of_kind(_train(recipe), "step")
    small, large = steps
    assert small["num_supervised"] == large["num_supervised"] == dataset.num_supervised
    assert small["num_slots"] != large["num_slots"]
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-6)
    assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-5)
    for name, values in small["slices"].items():
        assert values["tokens"] == large["slices"][name]["tokens"]
        assert values["loss"] == pytest.approx(large["slices"][name]["loss"], rel=1e-6)


def test_an_evaluation_gets_the_models_weights_and_changes_nothing(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    from safetensors.torch import load_file

    seen: dict[str, Any] = {}
    failing = {"step_00000004"}

    def evaluate(model: Path, report: Path) -> dict[str, float | None]:
        seen[report.parent.name] = load_file(model / "model.safetensors")
        assert (model / "config.json").exists() and (model / "tokenizer.model").exists()
        report.mkdir()
        if report.parent.name in failing:
            raise DsmError("no such benchmark")
        torch.rand(3)  # what an evaluation draws
        return {"gsm8k/cot": len(seen) / 10, "gsm8k/tool": None}

    recipe = make_recipe(sample_data, tmp_path / "run", logging__save_every=1)
    recipe["logging"]["keep_checkpoints"] = 9
    plain = _train(recipe | {"run": str(tmp_path / "plain")})
    recipe["evaluation"] = {"recipe": "unused.yaml", "every": 2}
    lines = _train(recipe, evaluate=evaluate)
    losses = [line["loss"] for line in _of_kind(plain, "step")]
    assert [line["loss"] for line in _of_kind(lines, "step")] == losses
    outcomes = {
        line["step"]: (line["scores"], line["error"]) for line in _of_kind(lines, "evaluation")
    }
    assert outcomes == {
        2: ({"gsm8k/cot": 0.1, "gsm8k/tool": None}, None),
        4: ({}, "no such benchmark"),
        5: ({"gsm8k/cot": 0.3, "gsm8k/tool": None}, None),
    }
    folder = tmp_path / "run" / "evaluation"
    assert "no such benchmark" in (folder / "step_00000004" / "error.txt").read_text()
    assert not list(folder.glob("*/model")), "weights are not kept"
    for name in ("step_00000002", "step_00000005"):
        convert(tmp_path / "run" / "checkpoints" / name, tmp_path / name)
        expected = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(tensor, seen[name][key]) for key, tensor in expected.items())

    seen.clear()
    failing.clear()
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_00000004")
    lines = _train(recipe, resume=True, evaluate=evaluate)
    # The one at step 2 stands, the one that failed is done again, the last was cut off.
    assert sorted(seen) == ["step_00000004", "step_00000005"]
    done = [(line["step"], line["error"]) for line in _of_kind(lines, "evaluation")]
    assert done == [(2, None), (4, "no such benchmark"), (4, None), (5, None)]
    seen.clear()
    _train(recipe, resume=True, evaluate=evaluate)
    assert seen == {}, "a run that is through has nothing left to evaluate"


def test_an_evaluation_that_nobody_can_do_is_refused(
    tmp_path: Path, sample_data: Path, make_recipe: Any
) -> None:
    recipe = make_recipe(sample_data, tmp_path / "run")
    recipe["evaluation"] = {"recipe": "evaluate.yaml", "every": 2}
    with pytest.raises(DsmError, match="evaluation: nothing to evaluate with"):
        _train(recipe)
    assert not (tmp_path / "run").exists()
