"""Real weights on real data: SmolLM2-135M-Instruct, GSM8K, the recipes in configs/."""

from pathlib import Path

import pytest
import torch

from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.recipes import load_recipe

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WEIGHTS = REPOSITORY / "models" / "smollm2_135m_instruct"


@pytest.fixture(scope="module", autouse=True)
def _weights() -> None:
    if not (WEIGHTS / "config.json").exists():
        pytest.skip("models/smollm2_135m_instruct is absent: run make real-weights")


def test_imported_weights_have_the_logits_of_transformers_and_come_back_bit_for_bit(
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    from dsm_engine.data.tokenizers import load_tokenizer
    from dsm_engine.model.gpt import build_gpt
    from dsm_engine.model.hf_weights import load_hf_weights, read_hf_config, save_hf_model
    from dsm_engine.parallel.config import ParallelConfig
    from dsm_engine.parallel.context import parallel_context

    config = read_hf_config(WEIGHTS)
    text = "User: What is 48/2 + 48? 小明有多少个苹果？\n\nAssistant: 48/2 = 24, 24 + 48 = 72."
    tokens = torch.tensor([load_tokenizer(WEIGHTS).encode(text)])
    expected_model = LlamaForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    with parallel_context(ParallelConfig(), seed=0) as context, torch.no_grad():
        gpt = build_gpt(config, ParallelConfig(), "fp32", context)
        load_hf_weights(gpt, config, context, WEIGHTS)
        logits = gpt(tokens, torch.arange(tokens.size(1))[None], None)
        expected = expected_model(tokens).logits
        save_hf_model(gpt, config, context, tmp_path, bos_id=1, eos_id=2)
    # 30 layers of fp32 sums in another order, on logits of about 20.
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, WEIGHTS))
    theirs.pop("lm_head.weight", None)  # tied: some versions of transformers write it twice
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ten_steps_on_gsm8k_lower_the_loss(tmp_path: Path, shared_folder: Path) -> None:
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.loop import train
    from dsm_engine.training.metrics import read_metrics

    source = f"sources.0.path={shared_folder / 'data' / 'gsm8k' / 'train.jsonl.gz'}"
    # The first 16 problems, trained on at most once among 7,473, stand for all in three packs.
    for name, more in (("train", []), ("few", ["sources.0.limit=16"])):
        overrides = [f"output={tmp_path / name}", f"tokenizer={WEIGHTS}", source, *more]
        path = REPOSITORY / "configs" / "data" / "gsm8k_smollm2.yaml"
        report = preprocess(load_recipe(path, overrides, PreprocessRecipe))
        assert report.num_documents == (7473 if name == "train" else 16)
    recipe = load_recipe(
        REPOSITORY / "configs" / "gsm8k_smollm2.yaml",
        [
            f"run={tmp_path / 'run'}",
            f"data.train={tmp_path / 'train'}",
            f"data.validation={tmp_path / 'few'}",
            f"data.tokenizer={WEIGHTS}",
            f"initialize_from={WEIGHTS}",
        ],
        TrainRecipe,
    )
    torch.set_num_threads(2)
    train(recipe)
    lines = read_metrics(tmp_path / "run")
    steps = [line for line in lines if line["kind"] == "step"]
    before, after = (line["loss"] for line in lines if line["kind"] == "validation")
    assert len(steps) == 10
    assert after < before - 0.02, (before, after)
    assert before < 2.0, "the weights were not those of a trained model"
