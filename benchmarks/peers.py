"""Other people's packers, called as they stand in the installed packages.

Each `load_*` gives None where the package is not installed, after one printed line.
"""

import ast
import importlib.util
import inspect
import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from lengths import CAPACITY
from numpy.typing import NDArray

Lengths = NDArray[np.int32]
Csr = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Offsets and documents, as in a pack index."""


def megatron_index(lengths: Lengths, documents: NDArray[np.int32]) -> NDArray[Any]:
    """What megatron.core's GPTDataset computes for one epoch, by its own functions: the documents
    shuffled, the samples of CAPACITY tokens cut from them, the samples shuffled."""
    from megatron.core.datasets import gpt_dataset, helpers

    random = np.random.RandomState(0)
    order = gpt_dataset._build_document_index(documents, 1, random, False)
    tokens = int(lengths.sum(dtype=np.int64))
    samples = helpers.build_sample_idx(lengths, order, CAPACITY, 1, tokens, True, True)
    gpt_dataset._build_shuffle_index(len(samples) - 1, len(samples) - 1, random)
    return samples


def load_trl() -> Callable[[Any], list[dict[str, Any]]] | None:
    """TRL's best-fit-decreasing without the Arrow work around it: from a pyarrow array of lengths
    to bins of example ids.

    The statements are those of the installed trl.data_utils._pack_bfd, from the sort by length to
    the end of the packing loop, compiled from its source into a function of their own.
    """
    try:
        from trl import data_utils  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("trl is not installed: no baseline for pack_best_fit_776k")
        return None
    source = textwrap.dedent(inspect.getsource(data_utils._pack_bfd))
    body = _only_function(source).body
    first = next(i for i, x in enumerate(body) if ast.unparse(x).startswith("ids = "))
    last = next(i for i, x in enumerate(body) if isinstance(x, ast.For))
    core = _only_function("def core(examples, lengths, seq_length): return bins")
    core.body[:0] = body[first : last + 1]
    module = ast.fix_missing_locations(ast.Module([core], []))
    namespace = dict(vars(data_utils))
    exec(compile(module, "trl.data_utils._pack_bfd", "exec"), namespace)
    return lambda lengths: namespace["core"](lengths, lengths, CAPACITY)


def trl_input(lengths: Lengths) -> Any:
    """The lengths as TRL's core takes them."""
    import pyarrow  # pyright: ignore[reportMissingImports]

    return pyarrow.array(lengths)


def trl_csr(bins: list[dict[str, Any]]) -> Csr:
    return _to_csr([x["ids"] for x in bins])


def load_seqpacker() -> Callable[[NDArray[np.int64]], Csr] | None:
    """seqpacker's default, optimized best-fit-decreasing, with its flat NumPy output."""
    try:
        from seqpacker import Packer  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("seqpacker is not installed: no row for it")
        return None

    def pack(lengths: NDArray[np.int64]) -> Csr:
        documents, splits = Packer(capacity=CAPACITY, strategy="obfd").pack_flat(lengths)
        return np.concatenate(([0], splits, [len(documents)])), documents

    return pack


def load_megatron_bridge(
    folder: Path,
) -> tuple[str, Callable[[list[int]], list[list[int]]]] | None:
    """The version, and Megatron-Bridge's first-fit-decreasing: from lengths to bins of lengths.

    Its module needs NumPy and tqdm only, so it is loaded by path, from a megatron-bridge installed
    into `folder` without its dependencies.
    """
    path = folder / "megatron" / "bridge" / "data" / "datasets" / "packing_utils.py"
    if not path.exists():
        print(f"megatron-bridge is not in {folder}: no row for it")
        return None
    module = _load_file("megatron_bridge_packing_utils", path)
    installed = metadata.distributions(name="megatron-bridge", path=[str(folder)])
    version = next((x.version for x in installed), "of unknown version")
    return version, lambda lengths: module.first_fit_decreasing(lengths, CAPACITY)


def _only_function(source: str) -> ast.FunctionDef:
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    return function


def _load_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _to_csr(bins: list[list[Any]]) -> Csr:
    offsets = np.zeros(len(bins) + 1, np.int64)
    np.cumsum([len(x) for x in bins], out=offsets[1:])
    return offsets, np.concatenate([np.asarray(x, np.int64) for x in bins])
