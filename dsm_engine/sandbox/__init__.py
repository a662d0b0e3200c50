"""Running programs that nobody trusts: for verifying data and for evaluation."""

from dsm_engine.sandbox.sandbox import (
    UNSAFE_WARNING,
    ProgramResult,
    Sandbox,
    SandboxStatus,
    sandbox_status,
)

__all__ = ["UNSAFE_WARNING", "ProgramResult", "Sandbox", "SandboxStatus", "sandbox_status"]
