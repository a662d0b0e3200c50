"""Runs the programs of published sources and prints how many examples hold.

python tools/verify_programs.py data/ --workers 2 --rejects rejects.jsonl

`data/` has the files in folders by set, compressed or not; sets that are not there are left out.
The time is that of running and comparing, without reading; nothing is cached.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from dsm_engine.data.example import Example, ExampleFault
from dsm_engine.data.quality.program_verification import ProgramVerifier, verification_sandbox
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.errors import DsmError
from dsm_engine.grading import grader_name

_BATCH_EXAMPLES = 256
_MATHCODER = {"sources": ["mathcoder/mathematics", "mathcoder/simuleq"]}
_PROGRAM_OF_THOUGHT = {"program_key": "program", "answer_key": "answer"}
_SETS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("MathCoder, without SVAMP", "mathcoder", "tir_mathcoder/tir.jsonl", _MATHCODER),
    ("ToRA examples", "tora", "tora_examples/examples.jsonl", {}),
    ("Ape210K valid", "ape210k", "ape210k/valid.ape.json", {}),
    ("Math23K test", "math23k", "math23k/math23k_test.json", {}),
    ("Program of Thoughts", "jsonl", "pot_codex/pot.jsonl", _PROGRAM_OF_THOUGHT),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, help="examples of each set")
    parser.add_argument("--rejects", type=Path, help="JSONL of what is at fault, and why")
    arguments = parser.parse_args()
    print(f"compared by {grader_name()}; {arguments.workers} workers\n")
    print("| set | examples | hold | at fault | programs | programs/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    rejects: list[dict[str, Any]] = []
    for title, reader, name, options in _SETS:
        paths = [arguments.folder / name, arguments.folder / f"{name}.gz"]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            examples = _examples(reader, path, options)[: arguments.limit]
            rejects += _verify(title, examples, arguments.workers)
    if arguments.rejects is not None:
        arguments.rejects.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rejects))


def _examples(name: str, path: Path, options: dict[str, Any]) -> list[Example]:
    reader = make_reader(name, options=options)
    examples: list[Example] = []
    for row in reader.rows(path):
        try:
            examples.append(reader.example(row))
        except ExampleFault:
            continue  # what readers leave out, dsm preprocess counts
    return [example for example in examples if example.format != "cot"]


def _verify(title: str, examples: Sequence[Example], workers: int) -> list[dict[str, Any]]:
    """Prints the set's line of the table, and returns what is at fault."""
    causes: Counter[str] = Counter()
    rejects: list[dict[str, Any]] = []
    with verification_sandbox(workers=workers) as sandbox:
        sandbox.run([_warm_up(examples)] * workers)  # starting is not what is timed
        verifier = ProgramVerifier(sandbox)
        started = time.monotonic()
        for start in range(0, len(examples), _BATCH_EXAMPLES):
            batch = examples[start : start + _BATCH_EXAMPLES]
            for example, fault in zip(batch, verifier.verify(batch), strict=True):
                if fault is not None:
                    causes[fault.cause] += 1
                    rejects.append(_reject(example, fault))
        seconds = time.monotonic() - started
    shown = ", ".join(f"{number:,} `{cause}`" for cause, number in causes.most_common())
    num_programs = verifier.counts.programs_run
    print(
        f"| {title} | {len(examples):,} | {len(examples) - causes.total():,} | {shown} "
        f"| {num_programs:,} | {num_programs / seconds:.0f} |",
        flush=True,
    )
    return rejects


def _warm_up(examples: Sequence[Example]) -> str:
    codes = [block.text for example in examples for block in example.blocks]
    names = [name for name in ("numpy", "sympy") if any(name in code for code in codes)]
    return f"import {', '.join(names)}" if names else "pass"


def _reject(example: Example, fault: ExampleFault) -> dict[str, Any]:
    blocks = [{"kind": block.kind, "text": block.text} for block in example.blocks]
    return {
        "id": example.id,
        "cause": fault.cause,
        "reason": str(fault),
        "question": example.question,
        "blocks": blocks,
        "answer": example.answer,
    }


if __name__ == "__main__":
    try:
        main()
    except DsmError as error:
        raise SystemExit(str(error)) from error
