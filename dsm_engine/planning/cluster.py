"""The machines a plan is for, and every number that is assumed about them."""

from dataclasses import dataclass

from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest

_GIB = 1 << 30
_GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU as its data sheet has it. Bandwidths are bytes a second and one way."""

    name: str
    """As `dsm_engine.model.flops.peak_flops` knows it."""
    memory: int
    """Bytes that a process can have, as torch reports them."""
    memory_bandwidth: float
    intra_bandwidth: float
    """To the other GPUs of the node: NVLink, else PCIe."""
    host_bandwidth: float
    """To the host's memory: PCIe."""


DEVICES: dict[str, Device] = {
    name: Device(
        name=name,
        memory=int(gib * _GIB),
        memory_bandwidth=memory * _GB,
        intra_bandwidth=intra * _GB,
        host_bandwidth=host * _GB,
    )
    for name, gib, memory, intra, host in (
        ("b200", 178.0, 7700, 900, 64),
        ("h200", 139.8, 4800, 450, 64),
        ("h100", 79.1, 3350, 450, 64),
        ("h100-pcie", 79.1, 2000, 64, 64),
        ("h800", 79.1, 3350, 200, 64),
        ("a100", 79.1, 2039, 300, 32),
        ("a100-40gb", 39.4, 1555, 300, 32),
        ("a800", 79.1, 2039, 200, 32),
        ("l40s", 44.4, 864, 32, 32),
    )
}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no data sheet says; shares are of the data sheet's peak. None is measured here."""

    matrix_efficiency: float = 0.6
    """Matrix products of the linears and the head."""
    attention_efficiency: float = 0.3
    """Attention over packs of short documents."""
    memory_efficiency: float = 0.7
    """Kernels that only move data: norms, RoPE, SwiGLU, residuals, loss, optimizer."""
    network_efficiency: float = 0.75
    """NVLink and network, by ring collectives."""
    latency: float = 20e-6
    """Seconds a collective or a message takes beside its bytes."""
    inter_bandwidth: float = 50.0 * _GB
    """Network of one GPU, bytes a second and one way: 400 Gb/s."""
    host_step_bandwidth: float = 300.0 * _GB
    """Host memory of a node, bytes a second: optimizer_cpu_offload steps there."""
    overhead: int = 4 * _GIB
    """Bytes a rank: CUDA context, libraries' and communication buffers, fragmentation."""

    def __post_init__(self) -> None:
        for name in ("matrix", "attention", "memory", "network"):
            value = getattr(self, f"{name}_efficiency")
            if not 0 < value <= 1:
                raise DsmError(f"{name} efficiency is above 0 and at most 1, found {value}")
        for name in ("inter_bandwidth", "host_step_bandwidth"):
            if not getattr(self, name) > 0:
                raise DsmError(f"{name} is above 0, found {getattr(self, name)}")
        if self.latency < 0 or self.overhead < 0:
            raise DsmError(
                f"latency and overhead are 0 or more, found {self.latency} and {self.overhead}"
            )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    device: Device
    num_nodes: int
    gpus_per_node: int
    assumptions: Assumptions = Assumptions()

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.gpus_per_node < 1:
            raise DsmError(
                f"a cluster has 1 node of 1 GPU or more, found {self.num_nodes} of "
                f"{self.gpus_per_node}"
            )

    @property
    def world_size(self) -> int:
        """GPUs in all, one rank each."""
        return self.num_nodes * self.gpus_per_node

    def bandwidth(self, *, size: int, stride: int) -> float:
        """Bytes a second and one way that each rank of a group has in a ring.

        The group's ranks are `stride` apart. A ring through several nodes enters and leaves each by
        the network cards of its own ranks there.
        """
        share = self.assumptions.network_efficiency
        if self.within_a_node(size=size, stride=stride):
            return self.device.intra_bandwidth * share
        ranks_in_a_node = max(1, self.gpus_per_node // stride)
        network = self.assumptions.inter_bandwidth * ranks_in_a_node
        return min(network, self.device.intra_bandwidth) * share

    def within_a_node(self, *, size: int, stride: int) -> bool:
        """Whether all groups of this form lie in one node each."""
        span = size * stride
        return self.num_nodes == 1 or (
            span <= self.gpus_per_node and self.gpus_per_node % span == 0
        )


def device_by_name(name: str) -> Device:
    """The device of that name. Raises DsmError where it is not in the table."""
    device = DEVICES.get(name.lower())
    if device is None:
        raise DsmError(f"unknown device {name!r} {nearest(name, list(DEVICES))}")
    return device


def cluster_of(
    device: Device,
    assumptions: Assumptions,
    *,
    num_nodes: int,
    gpus_per_node: int,
    world_size: int | None,
) -> Cluster:
    """`num_nodes` nodes of `gpus_per_node`, or as many as `world_size` GPUs take.

    Raises DsmError where those do not fill whole nodes.
    """
    if world_size is not None:
        if world_size < 1:
            raise DsmError(f"a world has 1 GPU or more, found {world_size}")
        gpus_per_node = min(gpus_per_node, world_size)
        if gpus_per_node < 1 or world_size % gpus_per_node:
            raise DsmError(
                f"{world_size} GPUs do not fill nodes of {gpus_per_node}; change --gpus-per-node"
            )
        num_nodes = world_size // gpus_per_node
    return Cluster(
        device=device,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        assumptions=assumptions,
    )
