"""The data core beside its peers, in one run, on this machine: packing, opening, gathering.

    python benchmarks/bench_data.py --output benchmarks/results/bench-data.json

Work is checked equal before it is timed. benchmarks/README.md says what each row measures.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from gathering import bench_gathering
from lengths import make_lengths
from packing import bench_packing
from packing_large import bench_large_packing
from reading import bench_reading
from result_file import publish


def main() -> None:
    arguments = _parse_arguments()
    warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
    lengths = make_lengths(arguments.documents)
    rows = bench_packing(lengths, arguments.repetitions, arguments.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows += bench_reading(folder, lengths, arguments.repetitions, arguments.core_bench)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows += bench_gathering(
            folder, arguments.gathered_documents, arguments.repetitions, arguments.core_bench
        )
    if arguments.documents_100m:
        large = make_lengths(arguments.documents_100m)
        rows += bench_large_packing(large, arguments.large_repetitions)
    publish(rows, arguments.output)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The data core, timed beside its peers")
    parser.add_argument("--documents", type=int, default=776_000)
    parser.add_argument(
        "--documents-100m", type=int, default=100_000_000, help="0 leaves these rows out (5 GB)"
    )
    parser.add_argument("--gathered-documents", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--large-repetitions", type=int, default=5)
    parser.add_argument(
        "--core-bench", type=Path, help="the program of csrc/bench; without it no C++ rows"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(sys.prefix) / "peers",
        help="where megatron-bridge is installed without its dependencies",
    )
    parser.add_argument("--output", type=Path, help="the JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
