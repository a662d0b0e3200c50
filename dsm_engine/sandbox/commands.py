"""The commands that start a driver: in bubblewrap, with nothing of the machine but Python, or
without it, where somebody asked for that by name."""

import platform
import shutil
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

_TMP_BYTES = 16 << 20
_PACKAGES = ("sympy", "mpmath", "numpy", "scipy")  # programs may import these, where installed
_INSTALLATION_FOLDERS = ("site-packages", "dist-packages")
DRIVER_ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # the same program prints the same set order every time
    "PYTHONDONTWRITEBYTECODE": "1",
    # Forks inherit no threads, so the libraries must not start any.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def find_bwrap() -> str | None:
    """The path of the bwrap command, None where it is not installed."""
    return shutil.which("bwrap")


@cache
def package_versions() -> dict[str, str]:
    """The interpreter and the packages that programs may import, where installed."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def driver_command() -> list[str]:
    """The whole command line: every namespace its own, read-only files, no capabilities."""
    command = [
        find_bwrap() or "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
    ]
    command += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--clearenv"]
    for name, value in DRIVER_ENVIRONMENT.items():
        command += ["--setenv", name, value]
    for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"):
        command += ["--ro-bind-try", path, path]
    interpreter, prefix = _base_interpreter()
    if not prefix.is_relative_to("/usr"):
        command += ["--ro-bind", str(prefix), str(prefix)]
    here = Path(__file__).resolve().parent
    for name in ("driver.py", "seccomp_filter.py"):
        command += ["--ro-bind", str(here / name), f"/dsm/{name}"]
    mounted = []
    for idx, folder in enumerate(_package_folders()):
        mounted.append(f"/dsm/packages{idx}")
        command += ["--ro-bind", str(folder), mounted[-1]]
    command += ["--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    # Not -I: it would ignore PYTHONHASHSEED; the environment is cleared, -s and -S do the rest.
    command += [str(interpreter), "-s", "-S", "/dsm/driver.py", "bubblewrap", "/tmp"]
    return [*command, *mounted]


def unsafe_driver_command(folder: str) -> list[str]:
    """The command without bubblewrap; programs run in `folder`, and see all that the user sees."""
    interpreter, _ = _base_interpreter()
    driver = Path(__file__).resolve().parent / "driver.py"
    packages = [str(package) for package in _package_folders()]
    return [str(interpreter), "-s", "-S", str(driver), "unsafe", folder, *packages]


def _base_interpreter() -> tuple[Path, Path]:
    """The interpreter behind a virtual environment, and the folder it lives in."""
    prefix = Path(sys.base_prefix).resolve()
    interpreter = Path(sys.executable).resolve()
    if not interpreter.is_relative_to(prefix):
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        interpreter = prefix / "bin" / name
    return interpreter, prefix


def _package_folders() -> list[Path]:
    """The site-packages folders that hold what programs may import.

    Nothing else is mounted, though it be imported here: neither the working directory nor a
    checkout that has a folder of that name.
    """
    installed = [entry for entry in sys.path if Path(entry).name in _INSTALLATION_FOLDERS]
    folders: list[Path] = []
    for name in _PACKAGES:
        spec = PathFinder.find_spec(name, installed)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(location).parent.resolve()
            if folder not in folders:
                folders.append(folder)
    return folders
