"""A preprocessing run that is killed again and again, at moments nobody chose."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from dsm_engine.data.tokenizers import train_sentencepiece
from tests.preprocessing import command, files_of, recipe_of, run, write_rows

pytestmark = pytest.mark.slow
_NUM_KILLS = 25


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path: Path):
    model = tmp_path / "tokenizer.model"
    paths = [write_rows(tmp_path / f"{name}.jsonl", 6_000) for name in "ab"]
    texts = paths[0].read_text(encoding="utf-8").splitlines()[:200]
    train_sentencepiece(texts, path=model, vocab_size=80, symbols=["\n"])
    recipe = recipe_of(tmp_path / "out" / "train", model, *paths)
    values = {"block_bytes": 30_000}
    started = time.monotonic()
    assert run(recipe, "--workers", "2", **values).returncode == 0
    seconds = time.monotonic() - started
    expected = files_of(recipe.output)
    for file in recipe.output.parent.iterdir():
        file.unlink()
    moments = random.Random(0)
    num_killed = 0
    for _ in range(_NUM_KILLS):
        process = subprocess.Popen(
            command(recipe, "--workers", "2", **values),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        num_killed += process.wait() != 0
        if process.returncode == 0:  # it was done before: begin anew
            assert files_of(recipe.output) == expected
            assert {path.name for path in recipe.output.parent.iterdir()} == set(expected)
            for file in recipe.output.parent.iterdir():
                file.unlink()
    assert run(recipe, "--workers", "2", **values).returncode == 0
    assert files_of(recipe.output) == expected
    assert {path.name for path in recipe.output.parent.iterdir()} == set(expected)
    assert num_killed >= _NUM_KILLS // 4
