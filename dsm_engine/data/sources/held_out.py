"""Benchmarks are never trained on: a source that holds one is refused, whatever its file is called.

`held_out.json` has a fingerprint of every question of the benchmarks and no text;
`tools/held_out_questions.py` makes it. A file is known by its first questions, so its name, order,
compression and schema do not matter. Single questions that strayed into a training set are not
looked for here: that is decontamination.
"""

import re
from functools import cache
from itertools import islice
from pathlib import Path

import xxhash

from dsm_engine.data.example import ExampleFault
from dsm_engine.data.sources.reader import Reader
from dsm_engine.errors import DsmError
from dsm_engine.files import read_json

HELD_OUT_PATH = Path(__file__).parent / "held_out.json"
FINGERPRINT_DIGITS = 8
_NUM_QUESTIONS = 64
_MAX_ROWS = 4096  # looked through for them, where rows are omitted
_LEAST_SHARE = 0.25  # of those questions; training sets share single ones with benchmarks
_NOT_COMPARED = re.compile(r"[\s.,;:?!。，、；：？！．]+")


def refuse_benchmark(reader: Reader, path: Path, where: str) -> None:
    """Raises DsmError where the questions at the file's beginning are those of a benchmark."""
    held_out = held_out_questions()
    num_questions = 0
    found: list[str] = []
    for row in islice(reader.rows(path), _MAX_ROWS):
        try:
            question = reader.example(row).question
        except ExampleFault:
            continue
        num_questions += 1
        if name := held_out.get(fingerprint(question)):
            found.append(name)
        if num_questions == _NUM_QUESTIONS:
            break
    if found and len(found) >= _LEAST_SHARE * num_questions:
        raise DsmError(
            f"{path}: is never trained on: {len(found)} of its first {num_questions} questions are"
            f" those of the benchmark {max(sorted(set(found)), key=found.count)} ({where})"
        )


def fingerprint(question: str) -> str:
    """Half of the question's 64-bit XXH3, in hexadecimal digits.

    White space, case and the marks of sentences do not count: copies differ in them.
    """
    text = _NOT_COMPARED.sub("", question).casefold()
    return xxhash.xxh3_64(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]


@cache
def held_out_questions() -> dict[str, str]:
    """From a question's fingerprint to the benchmark it is of."""
    questions: dict[str, str] = {}
    for name, lines in read_json(HELD_OUT_PATH).items():
        digits = "".join(lines)
        for start in range(0, len(digits), FINGERPRINT_DIGITS):
            questions.setdefault(digits[start : start + FINGERPRINT_DIGITS], name)
    return questions
