"""libFuzzer on the manifest, through atheris: the bytes are a PREFIX.manifest.json.

`make fuzz` runs it. Whatever the bytes are, they are read or refused by one line of DsmError; and
so they are with a checksum that holds, which random bytes never reach. Half the mutations change a
value of the JSON instead of its bytes, because most other bytes are no JSON.
"""

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["dsm_engine"]):
    import orjson

    from dsm_engine.data.manifest import read_manifest, sealed
    from dsm_engine.errors import DsmError

_VALUES = (None, True, -1, 0, 2, 1 << 31, 1 << 63, 0.5, 1e300, "", "x", "\x00\n", "0" * 16, [], {})


def main() -> None:
    """Runs until libFuzzer's -runs or -max_total_time is over."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        path = Path(name) / "x.manifest.json"

        def test_one_input(content: bytes) -> None:
            _read(path, content)
            try:
                resealed = orjson.dumps(sealed(orjson.loads(content)))
            except (orjson.JSONDecodeError, AttributeError, TypeError):
                return  # no JSON object, or one nested too deeply to write
            _read(path, resealed)

        atheris.Setup(sys.argv, test_one_input, custom_mutator=_mutated)
        atheris.Fuzz()


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        manifest = read_manifest(path)
    except DsmError as error:
        assert "\n" not in str(error), "an error is one line"
        return
    assert manifest == sealed(manifest), "what is read has a checksum that holds"


def _mutated(content: bytes, max_size: int, seed: int) -> bytes:
    rng = random.Random(seed)
    try:
        manifest = orjson.loads(content)
    except orjson.JSONDecodeError:
        return atheris.Mutate(content, max_size)
    containers = list(_containers(manifest))
    if not containers or rng.random() < 0.5:
        return atheris.Mutate(content, max_size)
    _change(rng.choice(containers), rng)
    changed = orjson.dumps(manifest)
    return changed if len(changed) <= max_size else atheris.Mutate(content, max_size)


def _containers(value: Any) -> list[Any]:
    """Every list and object with something in it."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not value:
        return []
    return [value, *(inner for child in children for inner in _containers(child))]


def _change(container: Any, rng: random.Random) -> None:
    """Removes, replaces or adds one entry."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    key = rng.choice(keys)
    action = rng.randrange(3)
    if action == 0:
        del container[key]
    elif action == 1:
        container[key] = rng.choice(_VALUES)
    elif isinstance(container, list):
        container.append(rng.choice(_VALUES))
    else:
        container[f"{key}{rng.randrange(10)}"] = container[key]


if __name__ == "__main__":
    main()
