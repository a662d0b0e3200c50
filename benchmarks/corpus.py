"""Mathematical text of any size, the same every time: JSON lines with a `text` each."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson

from dsm_engine.data.sample_problems import LANGUAGES, OPERATIONS, draw_problem

_REPOSITORY = Path(__file__).resolve().parent.parent
_SEED = 20


def write_corpus(path: Path, num_bytes: int) -> str:
    """Writes texts of `num_bytes` in all, UTF-8; says what they were made of.

    The published sets of DSM_SHARED or ../shared, drawn again and again, each time with other
    digits; where they are absent, the engine's own sample problems.
    """
    folder = published_folder()
    texts = list(_published(folder)) if folder.is_dir() else []
    draw = Random(_SEED)
    size = 0
    with path.open("wb") as file:
        while size < num_bytes:
            if texts:
                text = draw.choice(texts).translate(other_digits(draw))
            else:
                text = _problem(draw)
            size += len(text.encode())
            file.write(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))
    return "published sets" if texts else "sample problems"


def published_folder() -> Path:
    """Where the published sets lie, if they do."""
    return Path(os.environ.get("DSM_SHARED", _REPOSITORY.parent / "shared")) / "data"


def _published(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*/*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            for line in lines:
                try:
                    row: Any = orjson.loads(line)
                except orjson.JSONDecodeError:  # an answer is NaN
                    continue
                values = row.values() if isinstance(row, dict) else row
                if text := "\n".join(value for value in values if isinstance(value, str)):
                    yield text


def other_digits(draw: Random) -> dict[int, int]:
    """A table for `str.translate` that puts each digit in another one's place."""
    return str.maketrans("0123456789", "".join(draw.sample("0123456789", 10)))


def _problem(draw: Random) -> str:
    operation, language = draw.choice(sorted(OPERATIONS)), draw.choice(LANGUAGES)
    problem = draw_problem(draw, operation, language, "train")
    return f"User: {problem.question}\n\nAssistant: {problem.expression} with {problem.numbers}"
