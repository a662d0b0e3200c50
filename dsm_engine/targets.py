"""Before the work begins: that its files can be published when it is done."""

import os
import re
import tempfile
from pathlib import Path

from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder


def prepare_targets(*paths: Path) -> None:
    """Makes the folders, and removes the temporary files of writers that were killed.

    Such files are `.NAME.PID.tmp` (see `files.atomic_file`) where no process has that id any more;
    processes of other machines are not seen, so one machine writes a name at a time. Raises
    DsmError where a folder cannot be written to, or one stands where a file is to be published.
    """
    for path in paths:
        try:
            taken = path.is_dir()
        except (OSError, ValueError) as error:
            raise DsmError(f"{path}: cannot be written: {_reason(error)}") from error
        if taken:
            raise DsmError(f"{path}: a folder stands where a file is to be written; move it away")
    for folder in dict.fromkeys(path.parent for path in paths):
        make_folder(folder)
        _remove_leftovers(folder, [path.name for path in paths if path.parent == folder])
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise DsmError(f"{folder}: cannot be written to: {_reason(error)}") from error


def _remove_leftovers(folder: Path, names: list[str]) -> None:
    leftover = re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})\.([0-9]{{1,9}})\.tmp")
    for entry in folder.iterdir():
        match = leftover.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])):
            entry.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
