"""Fixtures shared by all tests; nothing heavy is imported until a test asks for it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# A busy machine is no fault of what is tested.
settings.register_profile("dsm_engine", deadline=None)
settings.load_profile("dsm_engine")


def pytest_configure(config: pytest.Config) -> None:
    """Tests of the CPU path run on the CPU also where there is a GPU; `-m gpu` shows it.

    What commands remember in the user's cache folder goes to one of this session.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cache = tempfile.TemporaryDirectory(prefix="dsm_engine_cache_")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = cache.name


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("DSM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data sets are not on this machine (DSM_SHARED or ../shared)")
    return folder


@pytest.fixture(scope="module")
def one_rank() -> Iterator[Any]:
    """A job of one process: Megatron's process groups, for as long as the test module.

    Not beside tests that train or convert: those join a job of their own.
    """
    from dsm_engine.parallel.config import ParallelConfig
    from dsm_engine.parallel.context import parallel_context

    with parallel_context(ParallelConfig(), seed=0) as context:
        yield context


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small sample set, its tokenizer and the datasets `train` and `validation`."""
    from dsm_engine.data.preprocess import preprocess
    from dsm_engine.data.recipe import PreprocessRecipe
    from dsm_engine.data.sample_set import tokenizer_symbols, write_sample_set
    from dsm_engine.data.tokenizers import train_sentencepiece

    folder = tmp_path_factory.mktemp("sample_data")
    write_sample_set(folder, num_problems=80, num_held_out=8, num_validation=8, seed=1)
    tokenizer = folder / "tokenizer.model"
    texts = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    train_sentencepiece(texts, path=tokenizer, vocab_size=512, symbols=tokenizer_symbols())
    for name in ("train", "validation"):
        source = {"reader": "examples", "path": folder / f"{name}.jsonl"}
        preprocess(
            PreprocessRecipe.model_validate(
                {"output": folder / name, "tokenizer": tokenizer, "sources": [source]}
            )
        )
    return folder


def tiny_recipe(data: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A training recipe of seconds; `changes` are dotted keys with __ for the dot."""
    values: dict[str, Any] = {
        "run": str(run),
        "seed": 5,
        "data": {
            "train": str(data / "train"),
            "validation": str(data / "validation"),
            "seq_length": 512,
        },
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "ffn_hidden_size": 64,
            "vocab_size": 512,
            "init_method_std": 0.1,
        },
        "training": {"steps": 5, "global_batch_size": 4, "lr": 1e-3, "weight_decay": 0.1},
        "parallel": {},
        "logging": {"tensorboard": False, "validate_every": 1000, "save_every": 1000},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    return values


@pytest.fixture(scope="session")
def make_recipe() -> Any:
    """`tiny_recipe`, for tests (a conftest cannot be imported)."""
    return tiny_recipe


@pytest.fixture(scope="session")
def read_tensors() -> Any:
    """Reads every tensor of a checkpoint's folder, whole, by its name."""

    def read(folder: Path) -> dict[str, Any]:
        import torch
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(folder)
        tensors = {
            name: torch.full(tuple(tensor.size), torch.nan, dtype=tensor.properties.dtype)
            for name, tensor in reader.read_metadata().state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
        load(tensors, storage_reader=reader, no_dist=True)
        return tensors

    return read
