"""A Hugging Face folder becomes a checkpoint, and a checkpoint a folder, in at most 1.2 times the
memory of the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsm_engine.files import file_xxh3
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.hf_names import parameter_shapes
from dsm_engine.model.hf_weights import write_hf_folder
from tests.chat_tokenizers import write_tokenizer

pytestmark = pytest.mark.slow

# 1.1 GB in bf16, in the proportions of the 7B model.
MODEL = ModelConfig(
    num_layers=16,
    hidden_size=1536,
    num_attention_heads=12,
    num_query_groups=12,
    ffn_hidden_size=4096,
    vocab_size=32000,
)
NUM_BYTES = 2 * MODEL.num_parameters
# The peak is the kernel's own, VmHWM, set back once everything is imported.
CONVERT = """
import json, pathlib, sys
import dsm_engine.training.convert as module

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

if __name__ == "__main__":
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    module.convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    print(json.dumps(status("VmHWM") - before))
"""


def test_both_directions_fit_in_1_2_times_the_weights(tmp_path: Path) -> None:
    weights = (
        (name, torch.randn(shape, dtype=torch.bfloat16))
        for name, shape in parameter_shapes(MODEL).items()
    )
    source = tmp_path / "hf"
    write_hf_folder(
        weights,
        MODEL,
        "bf16",
        source,
        bos_id=1,
        eos_id=2,
        generation=None,
        shard_bytes=10**10,
    )
    write_tokenizer(source, "byte_level")
    imported = _peak(source, tmp_path / "run", tmp_path)
    exported = _peak(tmp_path / "run", tmp_path / "back", tmp_path)
    for name, peak in (("imported", imported), ("exported", exported)):
        print(f"{NUM_BYTES / 1e9:.2f} GB {name} in {peak / NUM_BYTES:.2f} times its size")
    assert 0.9 * NUM_BYTES < imported < 1.2 * NUM_BYTES
    assert exported < 0.4 * NUM_BYTES, "an export holds a tensor or two"
    assert _digest(source) == _digest(tmp_path / "back")


def _peak(source: Path, target: Path, folder: Path) -> int:
    """Bytes the conversion took at most, above what was there before it."""
    script = folder / "measured.py"
    script.write_text(CONVERT)
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _digest(folder: Path) -> str:
    return file_xxh3(folder / "model.safetensors")
