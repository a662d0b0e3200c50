"""Memory of preprocessing does not grow with its input: DSM_SOAK_MB of JSONL, 100 by default.

`make soak` takes 4,000.
"""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from dsm_engine.data.tokenizers import train_sentencepiece
from tests.preprocessing import command, recipe_of, write_rows

pytestmark = pytest.mark.slow
_MEGABYTES = int(os.environ.get("DSM_SOAK_MB", "100"))
_LIMIT_BYTES = 1 << 30


def test_any_amount_of_input_needs_less_than_a_gibibyte(tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", 20_000)
    texts = rows.read_text(encoding="utf-8").splitlines()[:200]
    model = tmp_path / "tokenizer.model"
    train_sentencepiece(texts, path=model, vocab_size=80, symbols=["\n"])
    answer = b'"solution": "' + b"One and two are three. " * 30 + b'"}\n'
    source = tmp_path / "large.jsonl"
    with source.open("wb") as file:
        number = 0
        while file.tell() < _MEGABYTES * 1_000_000:
            file.write(b'{"question": "What is %d?", ' % number + answer)
            number += 1
    recipe = recipe_of(tmp_path / "out" / "train", model, source, deduplication="exact")
    process = subprocess.Popen(
        command(recipe, "--workers", "2", "--no-card"), stdout=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"{number:,} read = {number:,} kept" in output
    assert 50_000_000 < peak < _LIMIT_BYTES, f"{peak / 1e6:.0f} MB"
    print(f"{_MEGABYTES} MB of JSONL, {number:,} documents: {peak / 1e6:.0f} MB at most")


def resident_bytes(pid: int) -> int:
    """Of a process and its children, pages that several of them share counted once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_full_info().pss
    except psutil.Error:  # it has just ended
        pass
    return total
