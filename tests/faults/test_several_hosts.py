"""Several hosts: network namespaces with a link between them, and torchrun with a node in each.

Needs the right to make network namespaces (root) and iproute2; skipped without.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dsm_engine.training.faults.exits import HANG, LOST_RANK
from tests.layout_runs import LAYOUTS, lines, weights

pytestmark = [pytest.mark.multi, pytest.mark.slow]

NUMBERS = ("loss", "grad_norm", "lr", "num_supervised", "consumed_samples")
STEPS, HANG_S = 30, 12.0
_PORT = 29400
_numbers = itertools.count()
Make = Any


class Hosts:
    """Two network namespaces joined by a pair of virtual interfaces."""

    def __init__(self) -> None:
        number = f"{os.getpid() % 10000}{next(_numbers)}"
        self.names = (f"dsm{number}a", f"dsm{number}b")
        self.addresses = ("10.231.7.1", "10.231.7.2")

    def __enter__(self) -> "Hosts":
        first, second = self.names
        for name in self.names:
            _ip("netns", "add", name)
        # Interfaces have the names of their namespaces, which fit into 15 characters.
        _ip("link", "add", first, "netns", first, "type", "veth", "peer", second, "netns", second)
        for name, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            _ip("netns", "del", name)

    def cut(self) -> None:
        """Takes the second host's end of the link down: the first sees no carrier."""
        _ip("-n", self.names[1], "link", "set", self.names[1], "down")

    def mend(self) -> None:
        """Brings it up again."""
        _ip("-n", self.names[1], "link", "set", self.names[1], "up")

    def torchrun(self, recipe: Path, output: Path) -> list[subprocess.Popen[bytes]]:
        """A node in each, with one rank."""
        return [self._node(rank, recipe, output.with_suffix(f".{rank}")) for rank in (0, 1)]

    def _node(self, rank: int, recipe: Path, output: Path) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.names[rank]]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        torchrun += ["--nproc-per-node", "1", "--node-rank", str(rank)]
        torchrun += ["--master-addr", self.addresses[0], "--master-port", str(_PORT)]
        train = ["-m", "dsm_engine.cli", "train", str(recipe)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.names[rank],
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
        }
        with output.open("wb") as file:
            return subprocess.Popen(
                [*inside, *torchrun, *train], stdout=file, stderr=file, env=environment
            )


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("iproute2 (ip) is not on this machine")
    try:
        with Hosts() as made:
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces on this machine: {error.stderr.strip()}")


@pytest.fixture(scope="module")
def one_host(
    tmp_path_factory: pytest.TempPathFactory, sample_data: Path, make_recipe: Make
) -> Path:
    """The run of two ranks on one host."""
    folder = tmp_path_factory.mktemp("one_host")
    path = _write_recipe(make_recipe, sample_data, folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "dsm_engine.cli", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, timeout=200, env=environment)
    return folder / "run"


def test_two_hosts_train_what_one_does_also_through_a_link_that_is_cut_for_a_while(
    hosts: Hosts, one_host: Path, tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = _write_recipe(make_recipe, sample_data, tmp_path)
    nodes = hosts.torchrun(recipe, tmp_path / "output")
    _wait_for_step(tmp_path / "run", 3, nodes)
    hosts.cut()
    time.sleep(1)
    before = len(lines(tmp_path / "run", "step"))
    time.sleep(2)
    assert len(lines(tmp_path / "run", "step")) == before < STEPS, "the link was not cut"
    hosts.mend()
    assert [node.wait(timeout=120) for node in nodes] == [0, 0], _outputs(tmp_path)
    for mine, other in zip(lines(tmp_path / "run", "step"), lines(one_host, "step"), strict=True):
        assert [mine[key] for key in NUMBERS] == [other[key] for key in NUMBERS]
    mine, other = weights(tmp_path / "run"), weights(one_host)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_link_that_is_cut_for_good_ends_both_hosts_in_time(
    hosts: Hosts, tmp_path: Path, sample_data: Path, make_recipe: Make
) -> None:
    recipe = _write_recipe(make_recipe, sample_data, tmp_path)
    nodes = hosts.torchrun(recipe, tmp_path / "output")
    _wait_for_step(tmp_path / "run", 3, nodes)
    cut_at = time.monotonic()
    hosts.cut()
    try:
        for rank in (0, 1):
            pattern = rf"exitcode\s*: ({HANG}|{LOST_RANK}) "
            _wait_for_line(tmp_path / f"output.{rank}", rf"\(rank {rank}.*\): .*(ending with|lost)")
            assert time.monotonic() - cut_at < HANG_S + 15
            nodes[rank].wait(timeout=90)
            assert re.search(pattern, (tmp_path / f"output.{rank}").read_text())
    finally:
        hosts.mend()
        for node in nodes:
            node.kill()
            node.wait()


def _write_recipe(make_recipe: Make, data: Path, folder: Path) -> Path:
    recipe = make_recipe(
        data,
        folder / "run",
        parallel=LAYOUTS["dp2_overlap"][1],
        training__steps=STEPS,
        training__global_batch_size=16,
        faults={"hang_timeout_s": HANG_S},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _wait_for_step(run: Path, step: int, nodes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 120
    while len(lines(run, "step")) < step:
        assert time.monotonic() < deadline and all(node.poll() is None for node in nodes)
        time.sleep(0.02)


def _wait_for_line(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 90
    while not re.search(pattern, path.read_text(errors="replace")):
        assert time.monotonic() < deadline, path.read_text(errors="replace")[-3000:]
        time.sleep(0.1)


def _outputs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("output.*"))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
