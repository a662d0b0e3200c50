"""Packing takes at most 8 bytes a document beyond its input and its result."""

import subprocess
import sys

import pytest

from dsm_engine.data.pack_index import STRATEGIES

NUM_DOCUMENTS = 30_000_000
FIXED_BYTES = 16 << 20  # tables that do not grow with the documents, rounding to huge pages

PROGRAM = """
import resource, sys
import numpy as np
from dsm_engine.data.pack_index import build_pack_index
n, strategy, alignment = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lengths = (np.arange(n, dtype=np.int64) * 7919 % 997 + 16).astype(np.int32)
build_pack_index(lengths[:1000], capacity=4096, strategy=strategy, seed=0)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
packs = build_pack_index(
    lengths, capacity=4096, strategy=strategy, seed=0, alignment=alignment, threads=2
)
with open("/proc/self/status") as file:
    peak = next(int(x.split()[1]) << 10 for x in file if x.startswith("VmHWM"))
print(peak - before - sum(array.nbytes for array in packs.arrays()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("alignment", [1, 8])
def test_packing_takes_eight_bytes_a_document(strategy: str, alignment: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(NUM_DOCUMENTS), strategy, str(alignment)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    scratch = int(ran.stdout)
    assert scratch <= 8 * NUM_DOCUMENTS + FIXED_BYTES, f"{scratch / NUM_DOCUMENTS:.2f} bytes"
