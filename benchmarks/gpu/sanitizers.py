"""The operator tests on a GPU under NVIDIA's compute-sanitizer.

    python benchmarks/gpu/sanitizers.py

memcheck (accesses out of bounds, misaligned), racecheck (shared memory without a barrier) and
initcheck (reads of device memory that nothing wrote). Without torch's caching allocator, so that
each tensor is an allocation of its own whose bounds the tools know; for the same reason the tests
that capture CUDA graphs are left out, since an allocation cannot be captured. The attention
backends' kernels are others' and not looked at.

Exit code 1 where a tool finds something or the tests fail, 2 where it cannot run.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck", "initcheck")
_REPOSITORY = Path(__file__).resolve().parents[2]
_TESTS = ("-m", "gpu", "-k", "not attention and not isolation and not graph", "tests/gpu")
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_PASSED = re.compile(r"\b[1-9]\d* passed")
_ERROR_EXIT_CODE = 99
_TIMEOUT_S = 300


def main() -> int:
    results = run_sanitizers()
    for result in results:
        print(describe(result))
    if any(result["exit_code"] is None for result in results):
        return 2
    return 0 if all(is_clean(result) for result in results) else 1


def run_sanitizers(tools: Sequence[str] = TOOLS) -> list[dict[str, Any]]:
    """What each tool said: {tool, found, command, errors, exit_code, error}."""
    return [_run(tool) for tool in tools]


def is_clean(result: dict[str, Any]) -> bool:
    return result["exit_code"] == 0 and result["errors"] == 0


def describe(result: dict[str, Any]) -> str:
    """A result in one line."""
    name = f"compute-sanitizer {result['tool']}"
    if is_clean(result):
        return f"{name}: clean"
    if result["error"] is not None:
        return f"{name}: {result['error']}"
    errors = "an unknown number of" if result["errors"] is None else result["errors"]
    return f"{name}: {errors} errors, exit code {result['exit_code']}"


def count_errors(output: str) -> int | None:
    """Errors of all processes that a tool reports on; None where it reports on none."""
    counts = [int(errors or hazards) for errors, hazards in _ERRORS.findall(output)]
    return sum(counts) if counts else None


def _run(tool: str) -> dict[str, Any]:
    result: dict[str, Any] = {"tool": tool, "errors": None, "exit_code": None, "error": None}
    program = _find_program()
    if program is None:
        where = "it comes with the CUDA toolkit, in /usr/local/cuda/bin"
        return result | {"found": False, "command": None, "error": f"not found: {where}"}
    command = [
        program,
        *("--tool", tool, "--target-processes", "all"),
        *("--error-exitcode", str(_ERROR_EXIT_CODE)),
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_TESTS),
    ]
    result |= {"found": True, "command": " ".join(command)}
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        ended = subprocess.run(
            command,
            cwd=_REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return result | {"error": str(error).partition("\n")[0]}
    if ended.returncode != 0:
        print(ended.stdout, flush=True)
    if not _PASSED.search(ended.stdout):
        return result | {"exit_code": ended.returncode, "error": "no test passed"}
    return result | {"exit_code": ended.returncode, "errors": count_errors(ended.stdout)}


def _find_program() -> str | None:
    folders = [*os.get_exec_path(), "/usr/local/cuda/bin"]
    if "CUDA_HOME" in os.environ:
        folders.append(f"{os.environ['CUDA_HOME']}/bin")
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


if __name__ == "__main__":
    sys.exit(main())
