"""Running programs that nobody trusts: for verifying data and for evaluation."""

from dsm_engine.sandbox.sandbox import ProgramResult, Sandbox, SandboxStatus, sandbox_status

__all__ = ["ProgramResult", "Sandbox", "SandboxStatus", "sandbox_status"]
