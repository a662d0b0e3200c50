"""What a quickstart run came to: numbers from its files, and the loss curve as a picture."""

from pathlib import Path
from statistics import fmean, median
from typing import Any

import orjson

from dsm_engine.data.sample_set import SampleSetReport
from dsm_engine.environment import environment_report
from dsm_engine.files import atomic_file, read_json

LESSON = (
    "Copying numbers into a program is learnable in two minutes, arithmetic on numbers never seen "
    "is not: with the interpreter doing the sums the same small model answers what it cannot "
    "answer alone. That is what tool-integrated reasoning is for."
)
_LAST_STEPS = 20  # a step has two packs, so one step's loss is noisy


def summarize(
    output: Path,
    sample_set: SampleSetReport,
    seconds: dict[str, float],
    seconds_total: float,
) -> dict[str, Any]:
    """The values of summary.json, read back from what the commands wrote under `output`.

    loss_first is the loss of the first step, loss_last the mean of the last 20 steps (nats a
    supervised token); pack_fill the share of token slots that hold tokens; tokens_per_s the
    median over the steps, slots counted.
    """
    steps, validations = _metrics(output / "train" / "metrics.jsonl")
    packs = read_json(output / "train" / "data.json")["packs"]
    _plot(steps, validations, output / "loss.png")
    return {
        "loss_first": steps[0]["loss"],
        "loss_last": fmean(step["loss"] for step in steps[-_LAST_STEPS:]),
        "validation_loss_first": validations[0]["loss"],
        "validation_loss_last": validations[-1]["loss"],
        "accuracy_before": _accuracy(output / "evaluation_before" / "summary.json"),
        "accuracy_after": _accuracy(output / "evaluation_after" / "summary.json"),
        "pack_fill": packs["fill"],
        "tokens_per_s": median(step["slots_per_s"] for step in steps),
        "seconds_total": round(seconds_total, 1),
        "seconds_by_phase": seconds,
        "steps": steps[-1]["step"],
        "examples": sample_set.num_examples,
        "problems_held_out": sample_set.num_held_out,
        "programs_verified_by": sample_set.programs_verified_by,
        "lesson": LESSON,
        "artefacts": {
            "datasets": str(output / "data"),
            "tokenizer": str(output / "tokenizer"),
            "pack_index": str(output / "data" / "train.packs"),
            "run": str(output / "train"),
            "metrics": str(output / "train" / "metrics.jsonl"),
            "tensorboard": str(output / "train" / "tensorboard"),
            "model": str(output / "model_after"),
            "predictions": str(output / "evaluation_after" / "predictions.jsonl"),
            "loss_curve": str(output / "loss.png"),
        },
        "environment": environment_report(),
    }


def _metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    by_kind = ([line for line in lines if line["kind"] == kind] for kind in ("step", "validation"))
    steps, validations = by_kind
    return steps, validations


def _accuracy(path: Path) -> dict[str, float | None]:
    """`{"cot": .., "tool": ..}`; None for a mode that was skipped."""
    (modes,) = read_json(path)["benchmarks"].values()
    return {
        mode: None if modes.get(mode) is None else modes[mode]["accuracy"]
        for mode in ("cot", "tool")
    }


def _plot(steps: list[dict[str, Any]], validations: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], linewidth=0.8, label="train")
    axes.plot(
        [v["step"] for v in validations],
        [v["loss"] for v in validations],
        marker="o",
        label="validation",
    )
    axes.set(xlabel="step", ylabel="loss (nats a supervised token)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
