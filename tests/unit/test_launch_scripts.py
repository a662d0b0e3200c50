"""The launch scripts: what they would start, and that signals and exit codes get through."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPTS = ("run_node.sh", "launch_nodes.sh", "slurm_train.sbatch", "slurm_throughput_sweep.sh")
BENCH = "benchmarks/bench_throughput.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_well_formed(script: str) -> None:
    commands = [["bash", "-n"]]
    if shutil.which("shellcheck"):
        commands.append(["shellcheck", "--severity", "warning"])
    for command in commands:
        done = subprocess.run([*command, str(TOOLS / script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_bare_metal_commands_are_those_expected() -> None:
    program = ["-m", "dsm_engine.cli", "train", "my recipe.yaml", "--resume"]
    given = ["--hosts", "n0,n1", "--gpus", "4", "--restarts", "1", "--id", "x", "--dry-run"]
    lines = _run("launch_nodes.sh", *given, *program).stdout.splitlines()
    node = (
        "DSM_NNODES=2 DSM_RDZV=n0:29500 DSM_RDZV_ID=x DSM_GPUS_PER_NODE=4 DSM_MAX_RESTARTS=1 "
        r"tools/run_node.sh -m dsm_engine.cli train my\ recipe.yaml --resume"
    )
    command = f"cd {TOOLS.parent} && echo $$ >/tmp/dsm_x.pid && exec env {node}"
    for host, line in zip(("n0", "n1"), lines, strict=True):
        quoted = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
        )
        assert quoted.stdout.splitlines() == ["ssh", "-o", "BatchMode=yes", host, command]

    given = ["--nodes", "2", "--head", "n0", "--gpus", "4", "--restarts", "1", "--id", "x"]
    printed = _run("launch_nodes.sh", *given, *program).stdout.splitlines()
    assert printed == ["# on each of the 2 nodes:", f"cd {TOOLS.parent} && {node}"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--hosts", "a"], ["--nodes", "2", "x.py"], ["--nodes", "0", "--head", "a", "x.py"]],
)
def test_a_launch_that_says_too_little_is_refused(arguments: list[str]) -> None:
    done = _run("launch_nodes.sh", *arguments, check=False)
    assert done.returncode == 2
    assert "--hosts host0,host1" in done.stderr


def test_the_sweep_submits_each_layout_on_each_number_of_nodes() -> None:
    done = _run(
        "slurm_throughput_sweep.sh",
        *("--nodes", "4 1", "--layouts", "dp tp4-sp-cp2", "--packs-per-node", "64"),
        *("--steps", "9", "--warmup", "2", "--output", "out", "--sbatch", "--partition gpu"),
        *("--dry-run", "configs/x.yaml", "seed=3"),
    )
    more = {
        "dp": "",
        "tp4-sp-cp2": "parallel.tensor_model_parallel_size=4 parallel.sequence_parallel=true "
        "parallel.context_parallel_size=2 data.alignment=4 ",
    }
    expected = []
    for layout, overrides in more.items():
        for nodes in (1, 4):
            name, first = f"x_{layout}_n{nodes}", f"x_{layout}_n1"
            wait = f"--dependency afterok:JOB_{first} --kill-on-invalid-dep yes "
            baseline = f"--baseline out/{first}.json "
            expected.append(
                f"DSM_PROGRAM={BENCH} sbatch --parsable --nodes {nodes} --job-name {name} "
                f"{'' if nodes == 1 else wait}--partition gpu tools/slurm_train.sbatch "
                f"configs/x.yaml {overrides}seed=3 training.global_batch_size={64 * nodes} "
                f"--synthetic --steps 9 --warmup 2 {'' if nodes == 1 else baseline}"
                f"--output out/{name}.json"
            )
    assert done.stdout.splitlines() == expected


def test_jobs_of_the_sweep_wait_for_the_smallest_and_a_wrong_layout_submits_none(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    _program(
        tmp_path / "sbatch", f'echo "$DSM_PROGRAM $*" >>{log}; echo "$((100 + $(wc -l <{log})))"'
    )
    given = ["--nodes", "1 2 4", "--output", str(tmp_path / "out"), "--real"]
    _run("slurm_throughput_sweep.sh", *given, "x.yaml", path=tmp_path)
    lines = log.read_text().splitlines()
    assert ["afterok:101" in line for line in lines] == [False, True, True]
    assert all(line.startswith(f"{BENCH} ") and "--synthetic" not in line for line in lines)
    log.unlink()
    given = ["--layouts", "dp tp2-tq4", "x.yaml"]
    done = _run("slurm_throughput_sweep.sh", *given, path=tmp_path, check=False)
    assert done.returncode != 0 and "layout tp2-tq4: unknown part 'tq4'" in done.stderr
    assert not log.exists()


@pytest.mark.parametrize("program", ["", BENCH])
def test_a_job_out_of_time_is_asked_to_save_and_training_is_queued_again(
    tmp_path: Path, program: str
) -> None:
    log = tmp_path / "log"
    _program(
        tmp_path / "scontrol",
        f'[[ $1 == show ]] && echo -e "n7\\nn8" || echo "scontrol $*" >>{log}',
    )
    _program(
        tmp_path / "srun",
        f'trap "echo saved >>{log}; exit 0" USR1',
        f'echo "$DSM_RDZV $DSM_RDZV_ID $DSM_NNODES ${{DSM_MAX_RESTARTS:-}}" >>{log}',
        f'echo "${{*#{TOOLS}/}}" >>{log}',
        "for i in {1..300}; do sleep 0.1; done",
    )
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(TOOLS.parent),
        "SLURM_JOB_ID": "40123",
        "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "DSM_PROGRAM": program,
    }
    job = subprocess.Popen(
        ["bash", str(TOOLS / "slurm_train.sbatch"), "x.yaml", "a=b"], env=environment
    )
    _wait_for(log, 2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    job_lines = log.read_text().splitlines()
    common = "--kill-on-bad-exit=1 run_node.sh"
    if program:
        expected = ["n7:20123 40123_0 2 0", f"{common} {program} x.yaml a=b", "saved"]
    else:
        train = "-m dsm_engine.cli train --resume x.yaml a=b"
        expected = ["n7:20123 40123_0 2 ", f"{common} {train}", "saved", "scontrol requeue 40123"]
    assert job_lines == expected


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([signal.SIGUSR1], ["USR1"]),
        ([signal.SIGTERM], ["TERM"]),
        ([signal.SIGUSR1, signal.SIGUSR1], ["USR1", "USR1"]),
    ],
)
def test_signals_of_a_node_reach_the_processes_and_their_end_is_its_own(
    tmp_path: Path, signals: list[signal.Signals], expected: list[str]
) -> None:
    log = tmp_path / "log"
    _program(
        tmp_path / "worker",
        f'trap "echo USR1 >>{log}" USR1; trap "echo TERM >>{log}" TERM',
        f"echo ready >>{log}",
        f"while [[ $(wc -l <{log}) -le {len(signals)} ]]; do sleep 0.05; done",
        "sleep 0.2",
    )
    _program(tmp_path / "python", f"{tmp_path}/worker & wait $!; exit 7")
    node = subprocess.Popen(
        ["bash", str(TOOLS / "run_node.sh"), "x.py"],
        env={**os.environ, "DSM_PYTHON": str(tmp_path / "python")},
    )
    for number, one in enumerate(signals, start=1):
        _wait_for(log, number)
        node.send_signal(one)
    assert node.wait(timeout=60) == 7
    assert log.read_text().splitlines() == ["ready", *expected]


def test_a_node_that_is_to_end_starts_no_processes_in_the_place_of_those_that_ended(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    _program(tmp_path / "worker", 'trap "exit 1" TERM', f"echo ready >>{log}", "sleep 30 & wait $!")
    torchrun = f"trap 'kill $!; exit 7' TERM; while true; do {tmp_path}/worker & wait $!; done"
    _program(tmp_path / "python", torchrun)
    node = subprocess.Popen(
        ["bash", str(TOOLS / "run_node.sh"), "x.py"],
        env={**os.environ, "DSM_PYTHON": str(tmp_path / "python")},
    )
    _wait_for(log, 1)
    node.send_signal(signal.SIGTERM)
    assert node.wait(timeout=20) == 7
    assert log.read_text().splitlines() in (["ready"], ["ready"] * 2)


@pytest.mark.multi
def test_two_nodes_meet_and_go_on_when_a_process_of_one_has_died(tmp_path: Path) -> None:
    """ssh is bash here: both nodes are this machine."""
    _program(tmp_path / "ssh", 'shift 2; bash -c "$2"')
    (tmp_path / "job.py").write_text(
        "import os, sys\n"
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "ranks = [None] * dist.get_world_size()\n"
        "dist.all_gather_object(ranks, int(os.environ['RANK']))\n"
        "if dist.get_rank() == 1 and not os.path.exists(sys.argv[1]):\n"
        "    open(sys.argv[1], 'w').close()\n"
        "    os._exit(3)\n"
        "dist.barrier()\n"
        "print('ranks', ranks, sys.argv[2:], flush=True)\n"
        "dist.destroy_process_group()\n"
    )
    given = ["--hosts", "localhost,127.0.0.1", "--gpus", "1"]
    given += ["--port", str(_free_port()), "--id", f"test{os.getpid()}"]
    job = [str(tmp_path / "job.py"), str(tmp_path / "has_died")]
    done = subprocess.run(
        ["bash", str(TOOLS / "launch_nodes.sh"), *given, *job, "a b"],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "DSM_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "has_died").exists()
    found = [line for line in done.stdout.splitlines() if "ranks" in line]
    expected = "ranks [0, 1] ['a b']"
    assert sorted(found) == [f"[127.0.0.1] {expected}", f"[localhost] {expected}"]


def _run(
    script: str, *arguments: str, path: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(TOOLS / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=TOOLS.parent,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def _program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
    path.chmod(0o755)


def _wait_for(log: Path, num_lines: int) -> None:
    for _ in range(1200):
        if log.exists() and len(log.read_text().splitlines()) >= num_lines:
            return
        time.sleep(0.05)
    raise AssertionError(f"{log} has fewer than {num_lines} lines after a minute")


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
