"""Keeps other libraries' import-time warnings out of what a command prints."""

import warnings


def quiet_megatron() -> None:
    """Megatron warns of absent optional packages, and torch of what Megatron calls."""
    warnings.filterwarnings("ignore", module=r"megatron|torch")
    warnings.filterwarnings("ignore", category=FutureWarning)
