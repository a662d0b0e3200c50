"""Makes dsm_engine/data/sources/held_out.json from the published benchmark files.

    python tools/held_out_questions.py FOLDER

FOLDER has the benchmarks as `BENCHMARKS` names them. The file holds fingerprints alone.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsm_engine.data.sources.held_out import HELD_OUT_PATH, fingerprint
from dsm_engine.data.sources.records import read_records
from dsm_engine.files import write_json

# Each set's files, and for each the questions of a row: keys whose texts make one question.
BENCHMARKS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "gsm8k": {"test.jsonl.gz": (("question",),)},
    "math": {"test.jsonl.gz": (("problem",),)},
    "math500": {"test.jsonl.gz": (("problem",),)},
    "math_test_tora": {"test.jsonl.gz": (("problem",),)},
    "deepseek_math_eval": {
        f"evaluation__datasets__{name}.jsonl.gz": ((key,),)
        for name, key in (
            ("gsm8k__test", "question"),
            ("cmath__test", "question"),
            ("mgsm_zh__mgsm_zh", "messages"),
            ("agieval__gaokao-mathcloze", "question"),
            ("agieval__gaokao-mathqa", "question"),
            ("ocw__test", "problem"),
            ("sat__test", "question"),
            ("mmlu_stem__test", "question"),
        )
    },
    "cmath_dev": {
        "cmath_dev.jsonl.gz": (("input",),),
        "distractor.jsonl.gz": (("input",), ("original",)),
    },
    "other_benchmarks": {
        "src__data__gsm-hard__test.jsonl.gz": (("input",),),
        "src__data__svamp__test.jsonl.gz": (("Body", "Question"), ("Question",)),
        "src__data__asdiv__test.jsonl.gz": (("body", "question"), ("question",)),
        "src__data__mawps__test.jsonl.gz": (("input",),),
    },
}
_FINGERPRINTS_A_LINE = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_json(HELD_OUT_PATH, held_out(parser.parse_args().folder))


def held_out(folder: Path) -> dict[str, list[str]]:
    """For each set the fingerprints of those questions that no earlier one has, in lines."""
    seen: set[str] = set()
    lines: dict[str, list[str]] = {}
    for name, files in BENCHMARKS.items():
        new: set[str] = set()
        for file, questions in files.items():
            new |= set(map(fingerprint, _questions(folder / name / file, questions)))
        fresh = sorted(new - seen)
        seen |= new
        step = _FINGERPRINTS_A_LINE
        lines[name] = ["".join(fresh[i : i + step]) for i in range(0, len(fresh), step)]
    return lines


def _questions(path: Path, questions: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    for row in read_records(path):
        record = json.loads(row.raw)  # not orjson: an answer is NaN
        for keys in questions:
            yield " ".join(_text(record[key]) for key in keys)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value[0]["content"]


if __name__ == "__main__":
    main()
