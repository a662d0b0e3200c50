"""`dsm plan`: what it says, what it warns of, what it refuses, and how a sweep ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsm_engine.cli import main
from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.model.flops import model_flops
from dsm_engine.planning.advice import warnings_of
from dsm_engine.planning.cluster import DEVICES, Assumptions, Cluster, cluster_of, device_by_name
from dsm_engine.planning.plan import Job, Plan, job_of, make_plan
from dsm_engine.planning.sweep import sweep
from dsm_engine.planning.work import AssumedData
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import TrainRecipe

REPOSITORY = Path(__file__).resolve().parents[2]
PAPER = REPOSITORY / "configs" / "deepseekmath_instruct_7b.yaml"
LLAMA_70B = REPOSITORY / "configs" / "llama2_70b.yaml"


def _job(recipe: Path, *overrides: str, **assumed: Any) -> Job:
    return job_of(load_recipe(recipe, overrides, TrainRecipe), AssumedData(**assumed))


def _cluster(num_nodes: int = 1, device: str = "h100", **assumptions: float) -> Cluster:
    return Cluster(
        device=DEVICES[device],
        num_nodes=num_nodes,
        gpus_per_node=8,
        assumptions=Assumptions(**assumptions),  # type: ignore[arg-type]
    )


def _plan(*overrides: str, num_nodes: int = 1, recipe: Path = PAPER, **assumed: Any) -> Plan:
    return make_plan(_job(recipe, *overrides, **assumed), _cluster(num_nodes))


def _about(plan: Plan, word: str) -> list[str]:
    return [warning for warning in warnings_of(plan) if word in warning]


@pytest.fixture
def small_recipe(make_recipe: Any, sample_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(make_recipe(sample_data, tmp_path / "run")), encoding="utf-8")
    return path


# What it says.


def test_with_the_dataset_fill_steps_and_flops_are_those_of_its_packs(
    small_recipe: Path, sample_data: Path
) -> None:
    recipe = load_recipe(small_recipe, [], TrainRecipe)
    plan = make_plan(
        job_of(recipe, AssumedData()),
        cluster_of(DEVICES["h100"], Assumptions(), num_nodes=1, gpus_per_node=1, world_size=None),
    )
    dataset = TokenizedDataset(sample_data / "train")
    packs = build_pack_index(dataset.lengths, capacity=512, strategy="random", seed=recipe.seed)
    assert plan.job.work.packs_per_epoch == packs.num_packs
    assert plan.job.work.fill == pytest.approx(packs.statistics(dataset.lengths).fill)
    assert plan.steps_per_epoch == packs.num_packs / 4
    # Over an epoch the mean packs are the packs.
    assert recipe.model is not None
    epoch = model_flops(recipe.model, dataset.lengths, packs.num_packs * 512)
    assert plan.flops.total * packs.num_packs / 4 == pytest.approx(epoch, rel=1e-12)


def test_a_pack_index_file_is_planned_with(
    small_recipe: Path, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packs = tmp_path / "best.packs"
    argv = ["pack", str(sample_data / "train"), "--capacity", "512", "--strategy", "best_fit"]
    assert main([*argv, "--alignment", "4", "--output", str(packs)]) == 0
    capsys.readouterr()
    assert main(["plan", str(small_recipe), f"data.packs={packs}", "--json"]) == 2
    assert "4 GPUs" not in (error := capsys.readouterr().err) and "not divisible" in error
    argv = ["plan", str(small_recipe), f"data.packs={packs}", "--json", "--world-size", "4"]
    argv.append("parallel.context_parallel_size=2")  # which the index's alignment allows
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    best = build_pack_index(
        TokenizedDataset(sample_data / "train").lengths,
        capacity=512,
        strategy="best_fit",
        seed=1234,
        alignment=4,
    )
    assert found["data"]["packs_per_epoch"] == best.num_packs


def test_without_the_dataset_it_says_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(PAPER), "--assume-documents", "776000", "--assume-mean-length", "630"]
    assert main([*argv, "--assume-fill", "0.9"]) == 0
    output = capsys.readouterr().out
    assert "not on this machine; assumed 776,000 documents of 630 tokens" in output
    assert "90.0% full" in output
    assert "0.97 epochs" in output  # 500 x 256 packs of 0.9 x 4096 tokens over 776,000 x 630
    assert main(["plan", str(PAPER)]) == 0
    assert "how many epochs is not known (--assume-documents)" in capsys.readouterr().out


def test_json_holds_what_the_tables_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(LLAMA_70B), "--nodes", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == 68_976_648_192
    assert found["groups"] == {"tp": 4, "cp": 1, "dp": 4, "pp": 4}
    parts = sum(value for name, value in found["step_time"].items() if name != "total")
    assert found["step_time"]["total"] == pytest.approx(parts)
    for stage in found["memory"]["stages"]:
        names = ("weights", "gradients", "optimizer", "working_set", "overhead")
        kept = [name for name in stage if name.endswith("_activations")]
        total = sum(stage[name] for name in (*names, *kept, "pipeline_tensors"))
        assert stage["total"] == total
    assert found["warnings"] == []
    assert 0 < found["mfu"] < 1
    seconds = found["total_time"] / found["steps"]
    assert seconds == pytest.approx(found["step_time"]["total"])


def test_every_assumption_is_printed_and_can_be_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "--matrix-efficiency": ("0.51", "at 51% of peak"),
        "--attention-efficiency": ("0.23", "attention 23%"),
        "--memory-efficiency": ("0.62", "memory 62%"),
        "--network-efficiency": ("0.81", "network 81%"),
        "--latency-us": ("37", "37 us"),
        "--inter-bandwidth": ("12", "12 GB/s a GPU between nodes"),
        "--intra-bandwidth": ("345", "345 GB/s in a node"),
        "--overhead-gib": ("2.5", "2.5 GiB of overhead"),
    }
    argv = [word for option, (value, _) in options.items() for word in (option, value)]
    assert main(["plan", str(LLAMA_70B), "--nodes", "8", "--json", *argv]) == 0
    changed = json.loads(capsys.readouterr().out)
    assert main(["plan", str(LLAMA_70B), "--nodes", "8", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    for part in ("matrices", "attention", "data_movement", "tensor_parallel", "pipeline_sends"):
        assert changed["step_time"][part] != plain["step_time"][part], part
    assert main(["plan", str(LLAMA_70B), "--nodes", "8", *argv]) == 0
    output = capsys.readouterr().out
    for _, words in options.values():
        assert words in output


def test_it_needs_neither_torch_nor_a_gpu_and_takes_under_a_few_seconds() -> None:
    program = (
        "import sys; from dsm_engine.cli import main; "
        f"code = main(['plan', {str(LLAMA_70B)!r}, '--nodes', '8', '--sweep']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


# What it refuses.


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nodes", "3", "--gpus-per-node", "5"], "world size 15"),
        (["--world-size", "12"], "do not fill nodes of 8"),
        (["--world-size", "0"], "a world has 1 GPU or more"),
        (["--nodes", "0"], "a cluster has 1 node"),
        (["--device", "h10"], "did you mean 'h100'"),
        (["--matrix-efficiency", "0"], "matrix efficiency is above 0"),
        (["--network-efficiency", "1.2"], "network efficiency is above 0"),
        (["--inter-bandwidth", "0"], "inter_bandwidth is above 0"),
        (["--intra-bandwidth", "0"], "--intra-bandwidth is above 0"),
        (["--device-memory-gib", "-1"], "--device-memory-gib is above 0"),
        (["--overhead-gib", "-1"], "latency and overhead are 0 or more"),
        (["--top", "-1"], "--top is 0 or more"),
        (["--assume-fill", "0"], "assumed fill"),
        (["--assume-mean-length", "0.5"], "assumed mean length"),
        (["--assume-documents", "0"], "assumed number of documents"),
        (["initialize_from=absent", "model=null"], "absent/config.json"),
    ],
)
def test_a_users_fault_is_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [str(PAPER), "parallel.tensor_model_parallel_size=2"]
    overrides = [word for word in argv if "=" in word]
    options = [word for word in argv if "=" not in word]
    assert main(["plan", *recipe, *overrides, *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("option", ["--overhead-gib", "--assume-fill", "--latency-us"])
@pytest.mark.parametrize("value", ["nan", "inf", "x"])
def test_what_is_no_number_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(PAPER), option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


def test_one_message_lists_every_mistake_of_a_layout() -> None:
    job = _job(
        PAPER,
        "parallel.tensor_model_parallel_size=3",
        "parallel.pipeline_model_parallel_size=4",
        "training.global_batch_size=7",
    )
    with pytest.raises(DsmError) as caught:
        make_plan(job, _cluster(2))
    for words in ("world size 16", "num_layers 30", "num_attention_heads 32", "vocab_size"):
        assert words in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    from dsm_engine.model.config import to_hf_config

    recipe = load_recipe(PAPER, [], TrainRecipe)
    assert recipe.model is not None
    config = to_hf_config(recipe.model, dtype="bfloat16", bos_id=0, eos_id=1)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert _job(PAPER, f"initialize_from={tmp_path}").model == recipe.model
    with pytest.raises(DsmError, match="num_layers: 28, not 30"):
        _job(PAPER, f"initialize_from={tmp_path}", "model.num_layers=28")


# What it warns of; each warning is absent from the plan of the paper's run.


def test_the_papers_run_has_nothing_to_warn_of() -> None:
    assert warnings_of(_plan(num_documents=776_000, mean_length=630)) == []


@pytest.mark.parametrize(
    ("overrides", "num_nodes", "words"),
    [
        (["model.num_layers=60"], 1, "does not fit"),
        (["training.global_batch_size=8", "training.steps=20"], 1, "too few optimizer steps"),
        (["training.steps=20000"], 1, "times; lower training.steps"),
        (["training.global_batch_size=60000"], 1, "an epoch has"),
        (["parallel.recompute=full"], 1, "recompute=full takes"),
        (
            ["parallel.pipeline_model_parallel_size=5", "training.global_batch_size=16"],
            5,
            "bubble",
        ),
        (["parallel.tensor_model_parallel_size=16"], 4, "goes across nodes"),
        (["parallel.tensor_model_parallel_size=2"], 1, "sequence_parallel is off"),
        (
            [
                "parallel.use_distributed_optimizer=false",
                "parallel.overlap_param_gather=false",
            ],
            1,
            "use_distributed_optimizer is off",
        ),
        (
            [
                "parallel.overlap_grad_reduce=false",
                "parallel.overlap_param_gather=false",
                "training.global_batch_size=32",
            ],
            4,
            "set overlap_grad_reduce and overlap_param_gather",
        ),
    ],
)
def test_what_is_wasteful_or_too_large_is_warned_of(
    overrides: list[str], num_nodes: int, words: str
) -> None:
    plan = _plan(*overrides, num_nodes=num_nodes, num_documents=776_000, mean_length=630)
    assert len(_about(plan, words)) == 1


def test_poor_fill_is_warned_of_with_what_best_fit_would_give(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--gpus-per-node", "1", "data.seq_length=450", "data.overlong=drop"]
    assert main(["plan", str(small_recipe), *options]) == 0
    output = capsys.readouterr().out
    assert "poor fill" in output and "data.strategy=best_fit would fill" in output
    assert main(["plan", str(small_recipe), *options, "data.strategy=best_fit"]) == 0
    assert "would fill" not in capsys.readouterr().out


# How time and the sweep behave.


def test_the_bubble_is_the_published_share_of_even_stages() -> None:
    """(PP - 1) / (VP m) of the work, with no head and no loss to make the last stage slower."""
    for vp in (1, 5):
        plan = _plan(
            "model.vocab_size=8",
            "parallel.pipeline_model_parallel_size=2",
            f"parallel.virtual_pipeline_model_parallel_size={vp}",
        )
        time = plan.layout.time
        work = time.matrices + time.attention + time.data_movement + time.pipeline_sends
        share = 1 / (vp * plan.layout.num_micro_batches)
        assert time.bubble / work == pytest.approx(share, rel=0.01)


def test_more_gpus_never_make_a_step_slower_and_more_data_does() -> None:
    job = _job(LLAMA_70B)
    seconds = [sweep(job, _cluster(num_nodes)).ranked[0].time.total for num_nodes in (4, 8, 16, 32)]
    assert seconds == sorted(seconds, reverse=True)
    larger = _job(LLAMA_70B, "training.global_batch_size=512")
    assert sweep(larger, _cluster(8)).ranked[0].time.total > seconds[1]


@pytest.mark.parametrize("device", ["a100", "h100", "h200"])
def test_a_sweep_ranks_valid_layouts_that_fit_by_time_and_leaves_none_out(device: str) -> None:
    job, cluster = _job(LLAMA_70B), _cluster(4, device)
    result = sweep(job, cluster)
    times = [layout.time.total for layout in result.ranked]
    assert times == sorted(times)
    seen = set()
    for layout in result.ranked:
        parallel = layout.parallel
        assert job.mistakes(parallel, cluster.world_size) == []
        assert layout.worst.total <= cluster.device.memory
        seen.add((layout.sizes.tp, layout.sizes.pp, parallel.virtual_pipeline_model_parallel_size))
    assert len(seen) == len(result.ranked)
    assert result.num_fitting <= result.num_valid
    # TP of all key-value heads in one node, whatever PP, fits where anything does.
    if device == "h200":
        assert any(tp == 8 for tp, _, _ in seen)


def test_a_sweep_that_finds_nothing_says_how_much_the_smallest_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["plan", str(LLAMA_70B), "--sweep", "--gpus-per-node", "1"]
    assert main(argv) == 0
    assert "the smallest needs" in capsys.readouterr().out
    assert main([*argv, "--world-size", "7"]) == 0
    assert "none is valid" in capsys.readouterr().out


def test_a_sweep_marks_the_recipes_layout_and_tries_cp_where_the_alignment_allows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", str(LLAMA_70B), "--sweep", "--nodes", "8", "--top", "0"]) == 0
    output = capsys.readouterr().out
    assert sum(line.rstrip().endswith(" *") for line in output.splitlines()) == 1
    assert "CP is not tried" in output
    argv = ["plan", str(LLAMA_70B), "--sweep", "--nodes", "8", "data.alignment=4", "--json"]
    assert main([*argv, "--top", "0"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    assert {layout["parallel"]["context_parallel_size"] for layout in layouts} == {1, 2}


def test_a_ring_through_nodes_has_the_cards_of_its_ranks_in_a_node() -> None:
    cluster = _cluster(4, network_efficiency=1.0, inter_bandwidth=50e9)
    assert cluster.bandwidth(size=8, stride=1) == DEVICES["h100"].intra_bandwidth
    assert cluster.bandwidth(size=32, stride=1) == 400e9
    assert cluster.bandwidth(size=8, stride=4) == 100e9
    assert cluster.bandwidth(size=4, stride=8) == 50e9


def test_devices_have_a_peak() -> None:
    from dsm_engine.planning.step_time import peak_of

    for name in DEVICES:
        cluster = Cluster(device=device_by_name(name), num_nodes=1, gpus_per_node=1)
        assert peak_of(cluster, "bf16") > peak_of(cluster, "fp32") > 0
