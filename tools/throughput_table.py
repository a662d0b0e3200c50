"""Makes a Markdown table, and a plot, of results of benchmarks/bench_throughput.py.

  python tools/throughput_table.py RESULT.json ... [--markdown FILE.md] [--plot FILE.png]
Runs of one recipe and model parallelism are a line of the plot; dashed is perfect scaling from its
smallest run. `scaling` in the table is tokens a second and GPU over those of that smallest run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from throughput_report import Measured, read_run  # noqa: E402

from dsm_engine.errors import DsmError  # noqa: E402
from dsm_engine.files import atomic_file  # noqa: E402

_HEADER = (
    "layout",
    "nodes",
    "GPUs",
    "packs a step",
    "step (s)",
    "tokens/s",
    "tokens/s a GPU",
    "slots/s a GPU",
    "MFU",
    "data / forward-backward / gradients / optimizer",
    "memory (GB)",
    "scaling",
)
_PHASES = ("data", "forward_backward", "gradients", "optimizer")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", metavar="RESULT.json", nargs="+", type=Path)
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="default: printed")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    try:
        runs = [read_run(path) for path in arguments.results]
        text = table(runs)
        if arguments.markdown is None:
            print(text, end="")
        else:
            with atomic_file(arguments.markdown) as file:
                file.write(text.encode())
        if arguments.plot is not None:
            plot(runs, arguments.plot)
    except DsmError as error:
        print(f"throughput_table: {error}", file=sys.stderr)
        return 2
    return 0


def table(runs: Sequence[Measured]) -> str:
    """The runs as a Markdown table, by line of the plot and number of GPUs."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + " --- |" * len(_HEADER)]
    for group in _groups(runs).values():
        for run in group:
            cells = _cells(run, smallest=group[0])
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(runs: Sequence[Measured], path: Path) -> None:
    """Tokens a second over the number of GPUs, in all and a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, (total, each) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for label, group in _groups(runs).items():
        gpus = [run.num_gpus for run in group]
        (line,) = total.plot(gpus, [run.tokens_per_s for run in group], marker="o", label=label)
        perfect = [group[0].tokens_per_s_per_gpu * n for n in gpus]
        total.plot(gpus, perfect, linestyle="--", linewidth=1, color=line.get_color())
        each.plot(gpus, [run.tokens_per_s_per_gpu for run in group], marker="o", label=label)
    total.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="tokens/s")
    each.set(xscale="log", xlabel="GPUs", ylabel="tokens/s a GPU")
    each.set_ylim(bottom=0)
    ticks = sorted({run.num_gpus for run in runs})
    for axes in (total, each):
        axes.set_xticks(ticks, labels=[str(n) for n in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    total.legend(fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _groups(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Runs that differ in their number of GPUs, by recipe and model parallelism."""
    groups: dict[str, list[Measured]] = {}
    for run in sorted(runs, key=lambda run: run.num_gpus):
        groups.setdefault(f"{run.recipe}, {_model_parallelism(run)}", []).append(run)
    return groups


def _model_parallelism(run: Measured) -> str:
    return run.layout.rpartition("DP")[0].strip() or "DP alone"


def _cells(run: Measured, *, smallest: Measured) -> list[str]:
    shares = [run.phases_mean_s[phase] for phase in _PHASES]
    whole = sum(shares) or 1.0
    scaling = run.tokens_per_s_per_gpu / smallest.tokens_per_s_per_gpu
    return [
        run.layout,
        str(run.num_nodes),
        str(run.num_gpus),
        str(run.global_batch_size),
        f"{run.seconds / len(run.step_s):.3g}",
        f"{run.tokens_per_s:,.0f}",
        f"{run.tokens_per_s_per_gpu:,.0f}",
        f"{run.slots_per_s / run.num_gpus:,.0f}",
        "" if run.mfu is None else f"{run.mfu:.1%}",
        " / ".join(f"{share / whole:.0%}" for share in shares),
        f"{run.memory_peak_bytes / 1e9:.1f}",
        f"{scaling:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
