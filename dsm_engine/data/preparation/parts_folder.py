"""The journal of a preprocessing run: PREFIX.parts, with a file for each block that is done.

A run that was killed finds its parts there and makes only the others; shards on other machines put
theirs into the same folder. `plan.json` says of what they are parts.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_engine.data.preparation.part import Part, read_part, write_part
from dsm_engine.data.preparation.plan import parts_key
from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder, read_json, write_json

_PLAN = "plan.json"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.json")


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
        self.path = output.with_name(output.name + ".parts")

    def begin(self, plan: dict[str, Any], shard: Shard) -> None:
        """Makes the folder for this plan, or goes on with the one that stands there.

        Parts that the plan cannot use are removed; a shard, which others may work beside, raises
        DsmError unless the plan is the same.
        """
        stands = self._plan_that_stands()
        if shard.count > 1 and stands not in (None, plan):
            raise DsmError(
                f"{self.path}: holds parts of another recipe or of other inputs; remove it"
            )
        if stands is not None and parts_key(stands) != parts_key(plan):
            self.remove()
        make_folder(self.path)
        if stands != plan:
            write_json(self.path / _PLAN, plan)

    def plan(self) -> dict[str, Any]:
        """What the parts are of. Raises DsmError where there are none."""
        plan = self._plan_that_stands()
        if plan is None:
            raise DsmError(f"{self.path}: no parts there: dsm preprocess --shard I/N makes them")
        return plan

    @contextmanager
    def locked(self, shard: Shard) -> Iterator[None]:
        """Raises DsmError where another process makes the same parts."""
        make_folder(self.path.parent)
        lock = self.path.with_name(f".{self.path.name}.{shard.index}-{shard.count}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DsmError(f"{lock}: cannot be written: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DsmError(
                    f"{self.path}: another process is making this dataset; wait for it to end"
                ) from error
            except OSError:  # a file system without locks
                pass
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def write(self, part: Part) -> None:
        write_part(self._part(part.counts.block), part)

    def read(self, block: int, *, tokens: bool = True) -> Part:
        """A part; without its tokens, spans and ids where those are not asked for."""
        return read_part(self._part(block), tokens=tokens)

    def has(self, block: int) -> bool:
        """Whether the block's part stands, undamaged. A damaged one is removed."""
        path = self._part(block)
        if not path.exists():
            return False
        try:
            read_part(path, check=True)
        except DsmError:
            path.unlink(missing_ok=True)
            return False
        return True

    def finish_shard(self, shard: Shard, num_blocks: int) -> None:
        """Says that all parts of a shard stand, and how many blocks all shards have."""
        write_json(self._shard(shard), {"blocks": num_blocks})

    def num_blocks(self) -> int:
        """Of all shards. Raises DsmError that names those that are not finished."""
        found = {}
        for path in self.path.iterdir():
            if match := _SHARD.fullmatch(path.name):
                shard = Shard(index=int(match[1]), count=int(match[2]))
                found[shard] = read_json(path)["blocks"]
        if not found:
            raise DsmError(f"{self.path}: no shard has finished")
        counts = {shard.count for shard in found}
        if len(counts) > 1:
            raise DsmError(f"{self.path}: shards of {sorted(counts)}: choose one number of shards")
        (count,) = counts
        missing = [i for i in range(count) if Shard(index=i, count=count) not in found]
        if missing:
            names = ", ".join(f"{index}/{count}" for index in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise DsmError(f"{self.path}: shards that have not finished: {names}{more}")
        assert len(set(found.values())) == 1, "one plan has one number of blocks"
        return next(iter(found.values()))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _plan_that_stands(self) -> dict[str, Any] | None:
        path = self.path / _PLAN
        return read_json(path) if path.exists() else None

    def _part(self, block: int) -> Path:
        return self.path / f"{block:08d}.part"

    def _shard(self, shard: Shard) -> Path:
        return self.path / f"shard-{shard.index}-of-{shard.count}.json"
