"""The backends that there are, and which of them serves a model."""

from typing import Any

import torch

from dsm_engine.errors import DsmError
from dsm_engine.model.attention.backend import AttentionCase, Backend
from dsm_engine.model.attention.dense import DENSE
from dsm_engine.model.attention.flash import FLASH2, FLASH3
from dsm_engine.model.attention.flex import FLEX
from dsm_engine.model.attention.split import SPLIT
from dsm_engine.model.attention.transformer_engine import TRANSFORMER_ENGINE
from dsm_engine.model.attention.varlen import VARLEN

_ORDER = (TRANSFORMER_ENGINE, FLASH3, VARLEN, FLASH2, SPLIT, FLEX, DENSE)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ORDER}
"""By name, in the order in which `auto` asks them."""


def choose_backend(name: str, case: AttentionCase) -> Backend:
    """The backend of that name, or for `auto` the first that can serve.

    Raises DsmError where it cannot, with the reason and the names of those that can.
    """
    if name == "auto":
        return next(
            backend for backend in _ORDER if backend.reason_against(case) is None
        )  # split can
    if name not in BACKENDS:
        raise DsmError(f"attention backend {name!r}: there are auto, {', '.join(BACKENDS)}")
    reason = BACKENDS[name].reason_against(case)
    if reason is not None:
        able = [backend.name for backend in _ORDER if backend.reason_against(case) is None]
        raise DsmError(
            f"attention backend {name}: {reason}; auto takes {able[0]}, and there are "
            f"{', '.join(able)}"
        )
    return BACKENDS[name]


def survey() -> dict[str, Any]:
    """What this machine has, as plain values: each backend's reason not to train a bf16 model of
    32 heads of 128 and 8 groups, and which one `auto` takes by precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def case(dtype: torch.dtype) -> AttentionCase:
        return AttentionCase(device=device, dtype=dtype, num_heads=32, num_groups=8, head_dim=128)

    return {
        "backends": {
            backend.name: {
                "what": backend.what,
                "why_not": backend.reason_against(case(torch.bfloat16)),
            }
            for backend in _ORDER
        },
        "auto": {
            "bf16": choose_backend("auto", case(torch.bfloat16)).name,
            "fp32": choose_backend("auto", case(torch.float32)).name,
        },
    }
