"""The journal of a preprocessing run: PREFIX.parts, with a file for each block that is done.

A run that was killed finds its parts there and makes only the others; shards on other machines put
theirs into the same folder. `plan.json` says what is made of them; each part says itself what it is
of, so that one of another plan is never taken for one of this.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dsm_engine.data.preparation.part import Part, read_part, write_part
from dsm_engine.data.preparation.plan import Plan, read_plan
from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder, read_json, write_json

_PLAN = "plan.json"
_SHARD = re.compile(r"shard-(\d{1,9})-of-(\d{1,9})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Every `count`-th block, from the one numbered `index`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise DsmError(f"shard {self.index}/{self.count}: write it as I/N, I from 0 to N - 1")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From `I/N`. Raises DsmError."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match:
            raise DsmError(f"shard {text!r}: write it as I/N, such as 0/8 to 7/8")
        return cls(index=int(match[1]), count=int(match[2]))

    def has(self, block: int) -> bool:
        return block % self.count == self.index


class PartsFolder:
    """The parts of the dataset at `output`."""

    def __init__(self, output: Path) -> None:
        if output.name in ("", "..") or "\0" in str(output):
            raise DsmError(f"{str(output)!r}: names no dataset; give its prefix, as data/train")
        self.path = output.with_name(output.name + ".parts")
        self._key = ""

    def begin(self, plan: Plan, *, shared: bool) -> int:
        """Makes the folder for this plan, or goes on with the one that stands there.

        Parts that the plan cannot use are removed, and how many is returned. Where the folder is
        `shared` with other shards it raises DsmError instead.
        """
        num_removed = 0
        stands = (self.path / _PLAN).exists() and read_plan(self.path / _PLAN)
        if stands and stands.parts_key != plan.parts_key:
            if shared:
                raise DsmError(
                    f"{self.path}: holds parts of another recipe or of other inputs; remove it"
                )
            num_removed = len(list(self.path.glob("*.part")))
            self.remove()
        make_folder(self.path)
        self._key = plan.parts_key
        write_json(self.path / _PLAN, plan.values)
        return num_removed

    def open(self) -> Plan:
        """What the parts that stand are of. Raises DsmError where there are none."""
        path = self.path / _PLAN
        if not path.exists():
            raise DsmError(f"{self.path}: no parts there: dsm preprocess --shard I/N makes them")
        plan = read_plan(path)
        self._key = plan.parts_key
        return plan

    @contextmanager
    def locked(self, *, shared: bool) -> Iterator[None]:
        """Raises DsmError where another process works on this dataset; shards share the lock."""
        make_folder(self.path.parent)
        path = self.path.with_name(f".{self.path.name}.lock")
        descriptor = _open_lock(path)
        try:
            while True:
                _lock(descriptor, self.path, shared=shared)
                with suppress(OSError):
                    if path.stat().st_ino == os.fstat(descriptor).st_ino:
                        break
                os.close(descriptor)  # the one before has removed its file
                descriptor = _open_lock(path)
            if not shared:
                self._finish_removals()
            yield
        finally:
            with suppress(OSError):  # where other shards work, the last one removes it
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def write(self, part: Part) -> None:
        write_part(self._part(part.counts.block), part, key=self._key)

    def read(self, block: int, *, tokens: bool = True) -> Part:
        """A part; without its tokens, spans and ids where those are not asked for."""
        return read_part(self._part(block), key=self._key, tokens=tokens)

    def has(self, block: int) -> bool:
        """Whether the block's part stands, undamaged. Any other file in its place is removed."""
        path = self._part(block)
        if not path.exists():
            return False
        try:
            if read_part(path, key=self._key, check=True).counts.block == block:
                return True
        except DsmError:
            pass
        path.unlink(missing_ok=True)
        return False

    def finish_shard(self, shard: Shard, num_blocks: int) -> None:
        """Says that all parts of a shard stand, and how many blocks all shards have."""
        write_json(self._shard(shard), {"blocks": num_blocks})

    def num_blocks(self) -> int:
        """Of all shards. Raises DsmError that names those that are not finished."""
        found: dict[Shard, int] = {}
        for path in sorted(self.path.iterdir()):
            if match := _SHARD.fullmatch(path.name):
                values = read_json(path)
                blocks = values.get("blocks") if isinstance(values, dict) else None
                if not isinstance(blocks, int):
                    raise DsmError(f"{path}: is damaged: run the shard again")
                found[Shard(index=int(match[1]), count=int(match[2]))] = blocks
        if not found:
            raise DsmError(f"{self.path}: no shard has finished")
        counts = sorted({shard.count for shard in found})
        if len(counts) > 1:
            raise DsmError(
                f"{self.path}: has shards of {' and of '.join(map(str, counts))}: remove the"
                " shard-*.json files of all but one number"
            )
        missing = [i for i in range(counts[0]) if Shard(index=i, count=counts[0]) not in found]
        if missing:
            names = ", ".join(f"{index}/{counts[0]}" for index in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise DsmError(f"{self.path}: shards that have not finished: {names}{more}")
        if len(set(found.values())) > 1:
            raise DsmError(f"{self.path}: shards cut the sources differently: remove it")
        return next(iter(found.values()))

    def remove(self) -> None:
        """Removes the folder under another name, so that none half removed is taken for one."""
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.time_ns()}.tmp")
        try:
            self.path.rename(aside)
            shutil.rmtree(aside)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DsmError(f"{self.path}: cannot be removed: {error.strerror or error}") from error

    def _finish_removals(self) -> None:
        """Removes what `remove` had set aside when its process was killed."""
        aside = re.compile(rf"\.{re.escape(self.path.name)}\.\d+\.\d+\.tmp")
        for entry in self.path.parent.iterdir():
            if aside.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)

    def _part(self, block: int) -> Path:
        return self.path / f"{block:08d}.part"

    def _shard(self, shard: Shard) -> Path:
        return self.path / f"shard-{shard.index}-of-{shard.count}.json"


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DsmError(f"{path}: cannot be written: {error.strerror or error}") from error


def _lock(descriptor: int, folder: Path, *, shared: bool) -> None:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DsmError(
            f"{folder}: another process is making this dataset; wait for it to end"
        ) from error
    except OSError:  # a file system without locks
        pass
