"""The training run against an independent reference: transformers' Llama on each document alone,
torch's AdamW, and the learning-rate, clipping and weight-decay rules written out again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.pack_order import PackOrder
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.training.config import TrainRecipe
from dsm_engine.training.convert import convert
from dsm_engine.training.loop import train
from dsm_engine.training.metrics import read_metrics

STEPS, BATCH, CAPACITY, SEED = 13, 4, 512, 5
LR, WARMUP, DECAY, CLIP, BETA2 = 2e-3, 3, 0.1, 0.5, 0.97


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any) -> Path:
    """A Hugging Face folder of random weights with the sample set's tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    # Another seed than the runs', which would else draw the same weights by themselves.
    recipe = make_recipe(sample_data, folder / "run", training__steps=1, seed=SEED + 1)
    recipe["logging"]["save_initial"] = True
    train(TrainRecipe.model_validate(recipe))
    convert(folder / "run" / "checkpoints" / "step_00000000", folder / "hf")
    return folder / "hf"


def _recipe(
    make_recipe: Any, data: Path, run: Path, weights: Path, precision: str = "fp32"
) -> TrainRecipe:
    values = make_recipe(
        data,
        run,
        training={
            "steps": STEPS,
            "global_batch_size": BATCH,
            "lr": LR,
            "warmup_steps": WARMUP,
            "adam_beta2": BETA2,
            "weight_decay": DECAY,
            "clip_grad": CLIP,
            "precision": precision,
        },
    )
    del values["model"]
    values["initialize_from"] = str(weights)
    return TrainRecipe.model_validate(values)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Any, weights: Path
) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(_recipe(make_recipe, sample_data, folder, weights))
    return folder


class _Reference:
    """The same job with one document a forward pass."""

    def __init__(self, data: Path, weights: Path) -> None:
        from transformers import LlamaForCausalLM

        self.model = LlamaForCausalLM.from_pretrained(weights)
        self.dataset = TokenizedDataset(data / "train")
        self.packs = build_pack_index(
            self.dataset.lengths, capacity=CAPACITY, strategy="random", seed=SEED
        )
        self.order = PackOrder(self.packs.num_packs, SEED)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        norms = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
            betas=(0.9, BETA2),
        )

    def loss(self, dataset: TokenizedDataset, documents: list[int]) -> tuple[Any, int]:
        total, count = torch.zeros(()), 0
        for document in documents:
            ids = torch.from_numpy(dataset.document(document).astype(np.int64))
            supervised = torch.zeros(len(ids), dtype=torch.bool)
            for begin, end in dataset.spans(document).tolist():
                supervised[begin:end] = True
            logits = self.model(ids[None]).logits[0, :-1]
            chosen = supervised[1:]
            total = total + torch.nn.functional.cross_entropy(
                logits[chosen], ids[1:][chosen], reduction="sum"
            )
            count += int(chosen.sum())
        return total, count

    def step(self, step: int) -> tuple[float, float, int]:
        documents = [
            int(document)
            for i in range(BATCH)
            for document in self.packs.pack(self.order.pack_at(step * BATCH + i))
        ]
        self.optimizer.zero_grad()
        total, count = self.loss(self.dataset, documents)
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARMUP)
        self.optimizer.step()
        return total.item() / count, norm.item(), count


def test_losses_norms_counts_and_weights_are_those_of_the_reference(
    run: Path, sample_data: Path, weights: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    lines = read_metrics(run)
    steps = [line for line in lines if line["kind"] == "step"]
    validations = [line["loss"] for line in lines if line["kind"] == "validation"]
    reference = _Reference(sample_data, weights)
    assert reference.packs.num_packs < STEPS * BATCH, "the run goes beyond one epoch"
    held_out = TokenizedDataset(sample_data / "validation")

    def validation_loss() -> float:
        with torch.no_grad():
            total, count = reference.loss(held_out, list(range(held_out.num_documents)))
        return total.item() / count

    expected_validations = [validation_loss()]
    for step, line in enumerate(steps):
        loss, norm, count = reference.step(step)
        assert line["num_supervised"] == count
        assert line["loss"] == pytest.approx(loss, rel=2e-6)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert norm > CLIP, "clipping is at work"
    expected_validations.append(validation_loss())
    assert validations == pytest.approx(expected_validations, rel=2e-6)

    convert(run, tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    expected = reference.model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        difference = (tensor - expected[name]).norm() / expected[name].norm()
        # Adam divides by the root of tiny second moments, which magnifies fp32 rounding.
        assert difference < 2e-5, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_imported_as_a_checkpoint_train_like_weights_read_directly(
    sample_data: Path, make_recipe: Any, weights: Path, tmp_path: Path, precision: str
) -> None:
    direct = _recipe(make_recipe, sample_data, tmp_path / "direct", weights, precision)
    train(direct)
    convert(weights, tmp_path / "imported", precision=precision)  # type: ignore[arg-type]
    imported = direct.model_copy(update={"run": tmp_path / "imported"})
    train(imported, resume=True)
    losses = [
        [line["loss"] for line in read_metrics(r.run) if line["kind"] == "step"]
        for r in (direct, imported)
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_uses_the_recipes_hyperparameters(
    sample_data: Path, make_recipe: Any, weights: Path, tmp_path: Path
) -> None:
    whole = _recipe(make_recipe, sample_data, tmp_path / "run", weights)
    stopped = whole.model_copy(
        update={"training": whole.training.model_copy(update={"steps": 4, "adam_beta1": 0.5})}
    )
    train(stopped)
    train(whole, resume=True)
    assert (tmp_path / "run" / "recipe.1.yaml").read_text().count("adam_beta1: 0.5") == 1
    assert (tmp_path / "run" / "recipe.yaml").read_text().count("adam_beta1: 0.9") == 1

    reference = _Reference(sample_data, weights)
    for group in reference.optimizer.param_groups:
        group["betas"] = (0.5, BETA2)
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    for step, line in enumerate(lines):
        if step == 4:
            for group in reference.optimizer.param_groups:
                group["betas"] = (0.9, BETA2)
        loss, _, _ = reference.step(step)
        assert line["loss"] == pytest.approx(loss, rel=1e-5), step
