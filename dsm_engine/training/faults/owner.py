"""Who writes into a run's folder, across machines.

`flock` keeps two processes of one machine apart, and of several where the file system passes it
on; not all do. So the writer's record also lies in the folder, RUN/.owner.json, with a number that
goes up every few seconds. A record of another machine whose number moves is of a live run; one
whose number stands still for `WATCH_S` is of a dead one. No clocks are compared.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Self

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.recipes import Section, validate_recipe
from dsm_engine.training.faults.exits import FOLDER_TAKEN, leave_at_once

BEAT_S = 5.0
WATCH_S = 4 * BEAT_S
_RECORD = ".owner.json"


class _Owner(Section):
    """What the record says."""

    host: str
    machine: str
    """Differs between machines, and between boots of one."""
    pid: int
    started: str
    token: str
    """Differs between processes."""
    agents: list[str]
    """torchrun's, of all the job's ranks."""
    beat: int | None
    """Goes up while the process lives; nothing, once it has left the folder."""


class FolderOwner:
    """The record of this process in a run's folder while it is entered; rank 0 of a run has one.

    Raises DsmError where a live run of another machine holds the folder. `agents` are those of
    the job's ranks (`this_agent`): a run they began is theirs to go on with.
    """

    def __init__(self, run: Path, *, agents: list[str]) -> None:
        self._path = run / _RECORD
        self._mine = _Owner(
            host=socket.gethostname(),
            machine=_this_machine(),
            pid=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            token=secrets.token_hex(8),
            agents=agents,
            beat=0,
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="folder-owner", daemon=True)

    def __enter__(self) -> Self:
        self._refuse_live_owner()
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._write(None)

    def _refuse_live_owner(self) -> None:
        found = _read(self._path)
        if found is None or found.beat is None or found.machine == self._mine.machine:
            return  # on this machine the lock has spoken
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 5)
            now = _read(self._path)
            if now is None or now.beat is None:
                return
            if now != found:
                raise DsmError(
                    f"{self._path.parent}: process {now.pid} on {now.host} is writing here "
                    f"since {now.started}; stop it, or choose another folder (run=...)"
                )

    def _beat(self) -> None:
        beat = 0
        while not self._done.wait(BEAT_S):
            found = _read(self._path)
            if found is not None and found.token != self._mine.token:
                leave_at_once(
                    FOLDER_TAKEN,
                    f"{self._path.parent}: process {found.pid} on {found.host} has taken the "
                    f"folder over; ending, so that two runs do not mix",
                )
            beat += 1
            self._write(beat)

    def _write(self, beat: int | None) -> None:
        mine = self._mine.model_copy(update={"beat": beat})
        with contextlib.suppress(DsmError):  # a full disk is the checkpoints' to report
            write_json(self._path, mine.model_dump())


def this_agent() -> str | None:
    """The torchrun agent that started this process, by machine, process and start; None without.

    An agent outlives the ranks it starts again.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    return f"{socket.gethostname()}/{agent}/{_started(agent)}"


def all_agents() -> list[str]:
    """The agents of the job's ranks, each once; none without torchrun. All ranks together."""
    import torch.distributed as dist

    agents: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(agents, this_agent())
    return sorted({agent for agent in agents if agent is not None})


def began_by(run: Path, agent: str) -> bool:
    """Whether the run in the folder was begun by a job with this agent: it starts it again."""
    found = _read(run / _RECORD)
    return found is not None and agent in found.agents


def _read(path: Path) -> _Owner | None:
    return validate_recipe(read_json(path), _Owner, str(path)) if path.exists() else None


def _this_machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def _started(pid: int) -> str:
    """When a process started, in ticks since boot: field 22 of /proc/PID/stat (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "unknown"
