"""A Hugging Face folder read under any layout, each rank its part, is the same when it is
gathered."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsm_engine.files import read_json
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.hf_names import parameter_shapes
from dsm_engine.model.hf_weights import write_hf_folder
from dsm_engine.training.convert import convert
from tests.chat_tokenizers import write_tokenizer

pytestmark = pytest.mark.multi

WORKER = Path(__file__).with_name("hf_worker.py")
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "cp2": {"context_parallel_size": 2},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_interleaved": {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
    },
    "tp2_tied": {"tensor_model_parallel_size": 2},
    "pp2_tied": {"pipeline_model_parallel_size": 2},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks that goes through all layouts, and through faults under PP."""
    folder = tmp_path_factory.mktemp("hf_layouts")
    jobs = []
    for tied in (False, True):
        _write(folder / _source(tied), tied)
    for name, parallel in LAYOUTS.items():
        source = folder / _source(name.endswith("_tied"))
        job = {"parallel": parallel, "source": str(source), "output": str(folder / name)}
        jobs.append(job)
    left_over = folder / "left_over"
    left_over.mkdir()
    (left_over / "config.json").write_bytes((folder / _source(False) / "config.json").read_bytes())
    tensors = _tensors(folder / _source(False)) | {"model.layers.9.norm.weight": torch.ones(4)}
    save_file(tensors, left_over / "model.safetensors")
    in_the_way = folder / "in_the_way"
    in_the_way.write_text("a file where the folder is to be")
    pp2 = LAYOUTS["pp2"]
    jobs += [
        {"parallel": pp2, "source": str(left_over), "output": str(folder / "refused")},
        {"parallel": pp2, "source": str(folder / _source(False)), "output": str(in_the_way)},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", str(WORKER), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_comes_back_bit_for_bit(written: Path, layout: str) -> None:
    source = written / _source(layout.endswith("_tied"))
    names = sorted(path.name for path in source.iterdir())
    assert len(names) > 6
    assert sorted(path.name for path in (written / layout).iterdir()) == names
    for name in names:
        assert (written / layout / name).read_bytes() == (source / name).read_bytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_any_layout_becomes_the_same_folder(written: Path, layout: str) -> None:
    source, run = written / _source(layout.endswith("_tied")), written / f"{layout}_run"
    (run / "tokenizer").mkdir()
    write_tokenizer(run / "tokenizer", "byte_level")
    convert(run, written / f"{layout}_exported", shard_bytes=100_000)
    for path in source.glob("model*"):
        found = (written / f"{layout}_exported" / path.name).read_bytes()
        assert found == path.read_bytes(), path.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_reads_what_it_holds_and_nothing_else(written: Path, layout: str) -> None:
    model = _model(layout.endswith("_tied"))
    ranks = read_json(written / f"{layout}.json")
    assert [rank["num_read"] for rank in ranks] == [rank["num_held"] for rank in ranks]
    if not layout.startswith(("dp", "cp")):
        assert all(rank["num_held"] < 0.75 * model.num_parameters for rank in ranks)


@pytest.mark.parametrize(
    ("output", "message"),
    [("refused", "1 tensors have no place"), ("in_the_way", "the folder cannot be made")],
)
def test_every_rank_hears_of_a_fault(written: Path, output: str, message: str) -> None:
    ranks = read_json(written / f"{output}.json")
    assert len(ranks) == 2
    assert all(message in rank["error"] for rank in ranks)


def _source(tied: bool) -> str:
    return "tied" if tied else "untied"


def _model(tied: bool) -> ModelConfig:
    return ModelConfig(
        num_layers=4,
        hidden_size=64,
        num_attention_heads=8,
        num_query_groups=4,
        ffn_hidden_size=96,
        vocab_size=128,
        tie_word_embeddings=tied,
    )


def _write(folder: Path, tied: bool) -> None:
    model = _model(tied)
    generator = torch.Generator().manual_seed(7)
    weights = (
        (name, torch.randn(shape, generator=generator))
        for name, shape in parameter_shapes(model).items()
    )
    write_hf_folder(
        weights,
        model,
        "fp32",
        folder,
        bos_id=1,
        eos_id=2,
        generation=None,
        shard_bytes=100_000,
    )


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
