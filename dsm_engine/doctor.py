"""What is installed on this machine, what of it works, and how to get what is missing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from dsm_engine.environment import package_version
from dsm_engine.model.config import AttentionBackend
from dsm_engine.sandbox import sandbox_status
from dsm_engine.sandbox.commands import find_bwrap

State = Literal["ok", "absent", "broken"]
_PYTHON_VERSIONS = ((3, 11), (3, 12))
_MEGATRON_VERSION_PREFIX = "0.16."
_PROBE_TIMEOUT_S = 60
_MIN_FREE_GIB = 5
_USER_NAMESPACES = {
    "kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=15000"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or a profile for bwrap)",
    ),
}
# In a process of its own: an extension of another build may end the process that imports it.
_PROBE = """
import importlib, importlib.util, json
report = {"errors": {}}
def attempt(name):
    try:
        return importlib.import_module(name)
    except BaseException as error:
        report["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
torch = attempt("torch")
if torch is not None:
    report["torch"] = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
    try:
        for idx in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(idx)
            numbers = [device.total_memory / 2**30, device.major, device.minor]
            report["torch"]["devices"].append([device.name, *numbers])
    except BaseException as error:
        report["errors"]["cuda"] = f"{type(error).__name__}: {error}".splitlines()[0]
    if report["torch"]["devices"]:
        for name in ("transformer_engine.pytorch", "apex", "flash_attn"):
            if importlib.util.find_spec(name.partition(".")[0]):
                attempt(name)
        if importlib.util.find_spec("dsm_engine._cuda"):
            try:
                from dsm_engine import _cuda
                devices = range(len(report["torch"]["devices"]))
                report["cuda_operators"] = [_cuda.runtime_status(idx) for idx in devices]
            except BaseException as error:
                name = "dsm_engine._cuda"
                report["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        from dsm_engine.model.attention.choice import survey
        report["attention"] = survey()
    except BaseException as error:
        report["errors"]["attention"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(report))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    state: State
    """`absent`: not there, and nothing that every run needs."""
    text: str
    """One line; what to do, where something is missing or broken."""


Check = Callable[[], Finding]


def findings() -> Iterator[Finding]:
    """What every check finds, in order; a check that fails itself is a finding too."""
    for name, check in CHECKS:
        try:
            yield check()
        except Exception as error:  # noqa: BLE001 - the doctor survives every patient
            text = f"cannot be checked: {type(error).__name__}: {error}".splitlines()[0]
            yield Finding(name=name, state="broken", text=text)


def is_fit(found: Sequence[Finding]) -> bool:
    """Whether nothing is broken that every run needs."""
    return not any(finding.state == "broken" and finding.name in REQUIRED for finding in found)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in _PYTHON_VERSIONS:
        return _broken("python", f"{version}; 3.11 or 3.12 is needed")
    return _ok("python", f"{version}, {sys.executable}")


def _torch() -> Finding:
    if package_version("torch") is None:
        return _broken("torch", "not installed: pip install torch")
    report = _probe()
    if "torch" not in report:
        return _broken("torch", _import_error("torch"))
    torch = report["torch"]
    return _ok("torch", f"{torch['version']}, {_build(torch['cuda'])}")


def _build(cuda: str | None) -> str:
    return "CPU build" if cuda is None else f"built for CUDA {cuda}"


def _cuda_devices() -> Finding:
    report = _probe()
    devices = report.get("torch", {}).get("devices", [])
    if devices:
        texts = [
            f"{name} ({memory:.0f} GiB, compute capability {major}.{minor})"
            for name, memory, major, minor in devices
        ]
        return _ok("CUDA devices", "; ".join(texts))
    if "cuda" in report["errors"]:
        return _broken("CUDA devices", report["errors"]["cuda"])
    has_card = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    if not has_card:
        return _absent("CUDA devices", "none; training and evaluation run on the CPU")
    if report.get("torch", {}).get("cuda") is None:
        return _broken(
            "CUDA devices", "there is a GPU, and torch is a CPU build: pip install torch"
        )
    return _broken(
        "CUDA devices", "there is a GPU that torch cannot use: is its driver new enough?"
    )


def _megatron() -> Finding:
    version = package_version("megatron-core")
    if version is None:
        return _broken("megatron-core", "not installed: pip install 'megatron-core>=0.16,<0.17'")
    if not version.startswith(_MEGATRON_VERSION_PREFIX):
        return _broken(
            "megatron-core", f"{version}; 0.16 is needed: pip install 'megatron-core<0.17'"
        )
    return _ok("megatron-core", version)


def _gpu_package(distribution: str, module: str, use: str, how: str) -> Check:
    """A package that only GPUs use; it is imported where there is one."""

    def check() -> Finding:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return _absent(distribution, f"not installed ({use}): {how}")
        version = package_version(distribution) or "of unknown version"
        errors = _probe()["errors"]
        if module in errors:
            return _broken(distribution, f"{version} does not load: {errors[module]}")
        return _ok(distribution, version)

    return check


def _optional_package(distribution: str, module: str, use: str, how: str) -> Check:
    def check() -> Finding:
        if importlib.util.find_spec(module) is None:
            return _absent(distribution, f"not installed ({use}): {how}")
        return _ok(distribution, package_version(distribution) or "installed")

    return check


def _native_core() -> Finding:
    try:
        from dsm_engine import _core
    except ImportError as error:
        return _broken("native core", f"{error}: make install builds it")
    return _ok("native core", str(_core.__file__))


def _cuda_operators() -> Finding:
    if importlib.util.find_spec("dsm_engine._cuda") is None:
        return _absent(
            "CUDA operators", "not built: nvcc was not found when dsm_engine was installed"
        )
    report = _probe()
    if "dsm_engine._cuda" in report["errors"]:
        return _broken("CUDA operators", _import_error("dsm_engine._cuda"))
    reasons = [reason for reason in report.get("cuda_operators", []) if reason is not None]
    if reasons:
        return _broken("CUDA operators", f"built, and do not run: {reasons[0]}")
    return _ok("CUDA operators", "built")


def _attention() -> Finding:
    """Which backend computes attention where the recipe leaves the choice."""
    taken = _probe().get("attention", {}).get("auto")
    if taken is None:
        return _broken("attention", _import_error("attention"))
    names = sorted(set(taken.values()))
    if len(names) == 1:
        return _ok("attention", f"auto takes {names[0]}")
    each = ", ".join(f"{name} in {precision}" for precision, name in taken.items())
    return _ok("attention", f"auto takes {each}")


def _attention_backend(backend: str) -> Check:
    """Whether a backend can train a bf16 model here, and why not."""

    def check() -> Finding:
        found = _probe().get("attention", {}).get("backends", {}).get(backend)
        name = f"attention: {backend}"
        if found is None:
            return _absent(name, "not looked at: torch or the engine's models do not load")
        if found["why_not"] is not None:
            return _absent(name, found["why_not"])
        return _ok(name, found["what"])

    return check


def _sentencepiece() -> Finding:
    version = package_version("sentencepiece")
    if version is None:
        return _broken("sentencepiece", "not installed: pip install sentencepiece")
    from dsm_engine import _core

    if not hasattr(_core, "SentencePieceBpe"):
        return _broken("sentencepiece", f"{version}; the native core has no encoder: make install")
    return _ok("sentencepiece", f"{version}; BPE models are encoded by the native core")


def _bubblewrap() -> Finding:
    path = find_bwrap()
    if path is None:
        return _absent(
            "bubblewrap", "not installed, so no program is run: apt-get install bubblewrap"
        )
    status = sandbox_status()
    if status.available:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        return _ok("bubblewrap", f"{done.stdout.strip() or path}; the sandbox works")
    remedies = [
        remedy
        for name, (value, remedy) in _USER_NAMESPACES.items()
        if _read(Path("/proc/sys") / name) == value
    ]
    how = f"; as root: {'; '.join(remedies)}" if remedies else ""
    return _broken("bubblewrap", f"{status.reason}{how}")


def _disk() -> Finding:
    folder = Path.cwd()
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / 2**30:,.1f} of {usage.total / 2**30:,.1f} GiB free in {folder}"
    if usage.free < _MIN_FREE_GIB * 2**30:
        return _broken("disk", f"{text}: checkpoints and datasets need more")
    return _ok("disk", text)


@cache
def _probe() -> dict[str, Any]:
    """What torch and the packages over it say of themselves, from a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"errors": {"torch": f"does not load within {_PROBE_TIMEOUT_S} s"}}
    except (OSError, ValueError, IndexError):
        return {"errors": {"torch": "ends the process that imports it"}}


def _import_error(module: str) -> str:
    return f"does not load: {_probe()['errors'].get(module, 'no reason given')}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _ok(name: str, text: str) -> Finding:
    return Finding(name=name, state="ok", text=text)


def _absent(name: str, text: str) -> Finding:
    return Finding(name=name, state="absent", text=text)


def _broken(name: str, text: str) -> Finding:
    return Finding(name=name, state="broken", text=text)


REQUIRED = frozenset({"python", "torch", "megatron-core", "native core", "sentencepiece"})
"""The checks whose failure no run survives."""
CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", _python),
    ("torch", _torch),
    ("CUDA devices", _cuda_devices),
    ("megatron-core", _megatron),
    (
        "transformer-engine",
        _gpu_package(
            "transformer-engine",
            "transformer_engine.pytorch",
            "fused layers on GPUs",
            "pip install 'dsm-engine[gpu]'",
        ),
    ),
    (
        "apex",
        _gpu_package("apex", "apex", "fused kernels on GPUs", "see github.com/NVIDIA/apex"),
    ),
    (
        "flash-attn",
        _gpu_package("flash-attn", "flash_attn", "attention on GPUs", "pip install flash-attn"),
    ),
    ("native core", _native_core),
    ("CUDA operators", _cuda_operators),
    ("attention", _attention),
    *((f"attention: {name}", _attention_backend(name)) for name in get_args(AttentionBackend)),
    ("sentencepiece", _sentencepiece),
    (
        "pyarrow",
        _optional_package(
            "pyarrow", "pyarrow", "Parquet and Zstandard", "pip install 'dsm-engine[data]'"
        ),
    ),
    (
        "math-verify",
        _optional_package(
            "math-verify",
            "math_verify",
            "comparing answers that are no numbers",
            "pip install 'dsm-engine[eval]'",
        ),
    ),
    ("bubblewrap", _bubblewrap),
    ("disk", _disk),
)
"""By name, in the order in which they are shown."""
