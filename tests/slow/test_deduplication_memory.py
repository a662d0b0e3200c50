"""How many bytes deduplication needs for a document that is kept, at the peak."""

import subprocess
import sys

import pytest

NUM_DOCUMENTS = 2_500_000
LIMITS = {"exact": 40, "near": 800}  # of the worst moment: a table that grows stands twice

PROGRAM = """
import resource, sys
import numpy as np
from dsm_engine.data.preparation.quality import open_duplicates
from dsm_engine.data.recipe import PreprocessRecipe

BATCH, FEWEST = 5000, 300_000  # below that, what does not grow with the documents is felt
random = np.random.default_rng(0)

def add_documents():
    fingerprints = {
        "exact": random.integers(0, 1 << 64, BATCH, np.uint64),
        "numbers": random.integers(0, 1 << 64, BATCH, np.uint64),
        "signature": random.integers(0, 256, (BATCH, 128), np.uint8),
    }
    assert not duplicates.add(fingerprints).any(), "all are new"

def resident(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

recipe = PreprocessRecipe.model_construct(deduplication=sys.argv[1])
duplicates = open_duplicates(recipe)
add_documents()
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
shares = []
for kept in range(BATCH, int(sys.argv[2]), BATCH):
    add_documents()
    if kept >= FEWEST:
        shares.append((resident("VmHWM") - before) / kept)
print(f"{min(shares):.0f} {max(shares):.0f}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", LIMITS)
def test_a_kept_document_takes_so_many_bytes(mode: str):
    command = [sys.executable, "-c", PROGRAM, mode, str(NUM_DOCUMENTS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    least, most = map(int, ran.stdout.split())
    print(f"{mode}: {least} to {most} bytes a kept document at the peak")
    assert least <= most <= LIMITS[mode]
