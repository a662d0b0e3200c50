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
        load_hf_weights([gpt], config, context, WEIGHTS)
        logits = gpt(tokens, torch.arange(tokens.size(1))[None], None)
        expected = expected_model(tokens).logits
        save_hf_model([gpt], config, context, tmp_path, bos_id=1, eos_id=2)
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


def test_the_chat_template_gives_the_ids_and_the_answers_of_transformers() -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    from dsm_engine.data.example import Block, Example
    from dsm_engine.data.templates import load_template
    from dsm_engine.data.tokenizers import encode_prompt, load_tokenizer
    from dsm_engine.evaluation.backend import GenerationParams
    from dsm_engine.evaluation.transformers_backend import TransformersBackend

    ours, theirs = load_tokenizer(WEIGHTS), AutoTokenizer.from_pretrained(WEIGHTS)
    template = load_template("tokenizer", ours)
    question = "What is 48/2 + 48?\n\n小明有多少个苹果？"
    blocks = (
        Block(kind="text", text="First.\n"),
        Block(kind="program", text="print(48 // 2 + 48)"),
        Block(kind="output", text="72"),
        Block(kind="text", text="The answer is \\boxed{72}."),
    )
    messages = [{"role": "user", "content": question}]
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    segments = template.prompt_segments(question, "en", "cot")
    assert encode_prompt(ours, segments, add_bos=template.adds_bos) == prompt
    for num_blocks, format in ((1, "cot"), (2, "pot"), (4, "tir")):
        example = Example(
            id="x",
            question=question,
            blocks=blocks[:num_blocks],
            answer="72",
            language="en",
            format=format,
            source="test",
        )
        rendered = template.render(example)
        content = "".join(s.text for s in rendered[len(segments) : -2])
        whole = [*messages, {"role": "assistant", "content": content}]
        expected = theirs.apply_chat_template(whole, return_dict=False)
        assert encode_prompt(ours, rendered, add_bos=template.adds_bos) == expected

    model = LlamaForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    inputs = torch.tensor([prompt])
    generated = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=40, do_sample=False
    )
    backend = TransformersBackend(
        WEIGHTS,
        tokenizer=ours,
        device="cpu",
        adds_bos=template.adds_bos,
        answer_end=template.answer_end,
    )
    (answer,) = backend.generate([tuple(segments)], GenerationParams(max_new_tokens=40))
    assert answer.text == theirs.decode(generated[0, len(prompt) :], skip_special_tokens=True)
