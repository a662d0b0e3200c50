"""What a training run will take, before it begins: no GPU, seconds.

dsm plan configs/deepseekmath_instruct_7b.yaml --nodes 1 --gpus-per-node 8 --device h100
dsm plan configs/deepseekmath_instruct_7b.yaml --sweep --world-size 64
dsm plan configs/x.yaml --json > plan.json
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsm_engine.cli.recipe_arguments import add_recipe_arguments

if TYPE_CHECKING:
    from dsm_engine.planning.cluster import Cluster
    from dsm_engine.planning.work import AssumedData

_GIB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from dsm_engine.planning.cluster import DEVICES, Assumptions
    from dsm_engine.planning.work import AssumedData

    add_recipe_arguments(parser)
    parser.add_argument("--device", default="h100", help=f"{', '.join(DEVICES)} (%(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--world-size", type=int, help="GPUs in all, instead of --nodes")
    parser.add_argument(
        "--sweep", action="store_true", help="rank layouts of this world by predicted step time"
    )
    parser.add_argument(
        "--top", type=int, default=10, help="layouts a sweep shows (%(default)s; 0: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    data = parser.add_argument_group("what the data is taken to be where it is absent")
    assumed = AssumedData()
    data.add_argument("--assume-documents", type=int, help="default: unknown, so are the epochs")
    data.add_argument(
        "--assume-mean-length",
        type=_finite,
        default=assumed.mean_length,
        help="tokens a document (%(default)s)",
    )
    data.add_argument(
        "--assume-fill",
        type=_finite,
        default=assumed.fill,
        help="share of the slots that holds tokens (%(default)s)",
    )
    defaults = Assumptions()
    machine = parser.add_argument_group("assumptions about the machines (docs/planning.md)")
    for name, default, what in (
        ("--matrix-efficiency", defaults.matrix_efficiency, "share of peak, linears and head"),
        ("--attention-efficiency", defaults.attention_efficiency, "share of peak, attention"),
        ("--memory-efficiency", defaults.memory_efficiency, "share of memory bandwidth"),
        ("--network-efficiency", defaults.network_efficiency, "share of NVLink and network"),
        ("--latency-us", defaults.latency * 1e6, "microseconds a collective or message"),
        ("--inter-bandwidth", defaults.inter_bandwidth / 1e9, "GB/s of a GPU between nodes"),
        ("--overhead-gib", defaults.overhead / _GIB, "GiB a GPU beside what is counted"),
    ):
        machine.add_argument(name, type=_finite, default=default, help=f"{what} (%(default)g)")
    machine.add_argument(
        "--intra-bandwidth", type=_finite, help="GB/s within a node (the device's)"
    )
    machine.add_argument("--device-memory-gib", type=_finite, help="(the device's)")


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan, or the ranking of layouts."""
    from dsm_engine.cli.plan_report import print_plan, print_sweep
    from dsm_engine.errors import DsmError
    from dsm_engine.planning.advice import warnings_of
    from dsm_engine.planning.plan import job_of, make_plan
    from dsm_engine.planning.sweep import sweep
    from dsm_engine.recipes import load_recipe
    from dsm_engine.training.config import TrainRecipe

    if arguments.top < 0:
        raise DsmError(f"--top is 0 or more, found {arguments.top}")
    cluster = _cluster(arguments)
    recipe = load_recipe(Path(arguments.recipe), arguments.overrides, TrainRecipe)
    job = job_of(recipe, _assumed(arguments))
    if arguments.sweep:
        result = sweep(job, cluster)
        top = arguments.top or len(result.ranked)
        if arguments.json:
            _print_json(result.to_dict(top))
        else:
            print_sweep(result, job, cluster, top=top)
        return
    plan = make_plan(job, cluster)
    if arguments.json:
        _print_json({"recipe": arguments.recipe, **plan.to_dict(), "warnings": warnings_of(plan)})
    else:
        print_plan(plan, warnings_of(plan))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a number, not {text}")
    return value


def _cluster(arguments: argparse.Namespace) -> "Cluster":
    from dataclasses import replace

    from dsm_engine.errors import DsmError
    from dsm_engine.planning.cluster import Assumptions, cluster_of, device_by_name

    device = device_by_name(arguments.device)
    for option, value in (
        ("--intra-bandwidth", arguments.intra_bandwidth),
        ("--device-memory-gib", arguments.device_memory_gib),
    ):
        if value is not None and not value > 0:
            raise DsmError(f"{option} is above 0, found {value}")
    if arguments.intra_bandwidth is not None:
        device = replace(device, intra_bandwidth=arguments.intra_bandwidth * 1e9)
    if arguments.device_memory_gib is not None:
        device = replace(device, memory=int(arguments.device_memory_gib * _GIB))
    return cluster_of(
        device,
        Assumptions(
            matrix_efficiency=arguments.matrix_efficiency,
            attention_efficiency=arguments.attention_efficiency,
            memory_efficiency=arguments.memory_efficiency,
            network_efficiency=arguments.network_efficiency,
            latency=arguments.latency_us * 1e-6,
            inter_bandwidth=arguments.inter_bandwidth * 1e9,
            overhead=int(arguments.overhead_gib * _GIB),
        ),
        num_nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        world_size=arguments.world_size,
    )


def _assumed(arguments: argparse.Namespace) -> "AssumedData":
    from dsm_engine.planning.work import AssumedData

    return AssumedData(
        num_documents=arguments.assume_documents,
        mean_length=arguments.assume_mean_length,
        fill=arguments.assume_fill,
    )


def _print_json(values: dict[str, Any]) -> None:
    json.dump(values, sys.stdout, indent=2)
    sys.stdout.write("\n")
