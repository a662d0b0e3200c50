"""Fixtures shared by all tests; nothing heavy is imported until a test asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("DSM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data sets are not on this machine (DSM_SHARED or ../shared)")
    return folder


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Any]:
    """A job of one process: Megatron's process groups, for as long as the test session."""
    from dsm_engine.parallel.config import ParallelConfig
    from dsm_engine.parallel.context import parallel_context

    with parallel_context(ParallelConfig(), seed=0) as context:
        yield context
