"""torch's deterministic mode."""

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic_mode() -> Iterator[None]:
    """Within it torch takes deterministic algorithms only, or says that it has none."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS is deterministic with workspaces of a fixed size only; torch asks for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
