"""Real weights on real data: one batch of GSM8K has one gradient, however it is split."""

from pathlib import Path

import pytest

from dsm_engine.cli import main

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WEIGHTS = REPOSITORY / "models" / "smollm2_135m_instruct"


def test_real_weights_have_one_gradient_for_every_split(
    tmp_path: Path, shared_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (WEIGHTS / "config.json").exists():
        pytest.skip("models/smollm2_135m_instruct is absent: run make real-weights")
    configs = REPOSITORY / "configs"
    source = f"sources.0.path={shared_folder / 'data' / 'gsm8k' / 'train.jsonl.gz'}"
    words = [f"output={tmp_path / 'train'}", f"tokenizer={WEIGHTS}", "sources.0.limit=16"]
    recipe = str(configs / "data" / "gsm8k_smollm2.yaml")
    assert main(["preprocess", recipe, source, *words]) == 0
    recipe = str(configs / "gsm8k_smollm2.yaml")
    words = [f"data.train={tmp_path / 'train'}", f"data.tokenizer={WEIGHTS}"]
    words += [f"initialize_from={WEIGHTS}", "data.seq_length=384", "data.overlong=drop"]
    code = main(["verify", "--gradients", recipe, *words, "--packs", "2"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "one gradient for every split: holds" in printed.out
    assert "two runs of the packs as trained on: holds bit for bit" in printed.out
