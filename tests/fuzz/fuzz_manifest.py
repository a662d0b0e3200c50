"""libFuzzer on the manifest, through atheris: the bytes are a PREFIX.manifest.json.

`make fuzz` runs it. Whatever the bytes are, they are read or refused by one line of DsmError; and
so they are with a checksum that holds, which random bytes never reach.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dsm_engine"]):
    import orjson

    from dsm_engine.data.manifest import read_manifest, sealed
    from dsm_engine.errors import DsmError


def main() -> None:
    """Runs until libFuzzer's -runs or -max_total_time is over."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        path = Path(name) / "x.manifest.json"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            try:
                manifest = read_manifest(path)
            except DsmError as error:
                assert "\n" not in str(error), "an error is one line"
                return
            assert manifest == sealed(manifest), "what is read has a checksum that holds"

        def test_one_input(content: bytes) -> None:
            read(content)
            try:
                resealed = orjson.dumps(sealed(orjson.loads(content)))
            except (orjson.JSONDecodeError, AttributeError, TypeError):
                return  # no JSON object, or one nested too deeply to write
            read(resealed)

        atheris.Setup(sys.argv, test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
