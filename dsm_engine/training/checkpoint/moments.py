"""Adam's moments and the fp32 main weights as boxes of whole-model tensors.

Megatron lays the states of a replicated optimizer out by parameter and those of a distributed one
as slices of a flat buffer, and neither reads the checkpoint of the other. Here every state is a
tensor of the whole model, `optimizer.state.exp_avg.<parameter>`, and a rank says which boxes of it
are its own: a slice of a row-major matrix is three at most, the rest of a row, whole rows, and the
begin of a row. So nothing is gathered, neither to save nor to load.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import FP32Optimizer, HybridDeviceOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from dsm_engine.training.checkpoint.description import OptimizerKind
from dsm_engine.training.checkpoint.whole_model import ONLY_HERE

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class HeldSlice:
    """What this rank's optimizer holds of one parameter: elements [start, end) of it, flattened."""

    parameter: Tensor
    """The model's."""
    start: int
    end: int
    main: Tensor
    """What the optimizer moves: the parameter, a view of it, or an fp32 copy."""
    optimizer: torch.optim.Optimizer
    split: bool
    """Whether other data-parallel ranks hold the rest; else they hold the same."""

    @property
    def states(self) -> dict[str, Tensor]:
        """The tensors to keep, by name; each has (end - start) elements."""
        states = {name: self.optimizer.state[self.main][name] for name in _MOMENTS}
        if self.parameter.dtype != torch.float32:
            states["fp32_param"] = self.main
        return states


def optimizer_kind(optimizer: MegatronOptimizer) -> OptimizerKind:
    """Whether the moments are split over data-parallel ranks."""
    split = any(isinstance(member, DistributedOptimizer) for member in _members(optimizer))
    return "distributed" if split else "replicated"


def held_slices(optimizer: MegatronOptimizer) -> list[HeldSlice]:
    """Every slice this rank's optimizer moves."""
    slices: list[HeldSlice] = []
    for member in _members(optimizer):
        if isinstance(member, DistributedOptimizer):
            slices += _slices_of_buffers(member)
        else:
            slices += _whole_parameters(member)
    return slices


def moment_boxes(
    slices: Sequence[HeldSlice], weights: Sequence[Sequence[ShardedTensor]]
) -> list[ShardedTensor]:
    """The states of the slices as boxes; their data are views. `weights` is `weight_boxes`'s."""
    boxes_of = {_address(boxes[0].data): boxes for boxes in weights}
    return [
        box
        for held in slices
        for name, state in held.states.items()
        for box in _state_boxes(held, name, state, boxes_of[_address(held.parameter)])
    ]


def count_updates(optimizer: MegatronOptimizer) -> int:
    """How often the moments have been updated; 0 on a rank that holds none."""
    counts: set[int] = set()
    for member in _members(optimizer):
        for inner in _inner_optimizers(member):
            for group in inner.param_groups:
                for main in group["params"]:
                    if main in inner.state:
                        counts.add(int(inner.state[main].get("step", group.get("step", 0))))
    assert len(counts) <= 1, counts
    return counts.pop() if counts else 0


def prepare_moments(optimizer: MegatronOptimizer, *, updates: int) -> None:
    """Gives an optimizer states to load into, as if it had made that many updates.

    Each parameter has a counter of its own: where all share one, as after a load by Megatron-Core
    0.16.1, torch's AdamW counts a step once for each parameter.
    """
    for member in _members(optimizer):
        for inner in _inner_optimizers(member):
            for group in inner.param_groups:
                for main in group["params"]:
                    inner.state[main] = {
                        name: torch.zeros_like(main, dtype=torch.float32) for name in _MOMENTS
                    }
                    if isinstance(inner, torch.optim.Adam):
                        inner.state[main]["step"] = torch.tensor(float(updates))
                    else:  # fused optimizers count by group
                        group["step"] = updates
        if isinstance(member.optimizer, HybridDeviceOptimizer):
            member.optimizer._sync_sub_optimizers_state_to_hdo()


def main_weights_loaded(optimizer: MegatronOptimizer) -> None:
    """Passes loaded main weights on to the copies in host memory, where the optimizer has any."""
    for member in _members(optimizer):
        if isinstance(member.optimizer, HybridDeviceOptimizer):
            for main, inner in member.optimizer.param_to_inner_param.items():
                if inner is not main:
                    inner.data.copy_(main)


def _members(optimizer: MegatronOptimizer) -> list[Any]:
    members = getattr(optimizer, "chained_optimizers", [optimizer])
    return [member for member in members if not getattr(member, "is_stub_optimizer", False)]


def _inner_optimizers(member: Any) -> list[torch.optim.Optimizer]:
    """Those that move weights: one, or with CPU offload many."""
    if isinstance(member.optimizer, HybridDeviceOptimizer):
        return member.optimizer.sub_optimizers
    return [member.optimizer]


def _slices_of_buffers(member: Any) -> Iterator[HeldSlice]:
    """A distributed optimizer holds this rank's part of each gradient bucket."""
    dtypes = chain.from_iterable(ranges.values() for ranges in member.gbuf_ranges)
    for bucket in chain.from_iterable(dtypes):
        for parameter, ranges in bucket["param_map"].items():
            group, order = member.model_param_group_index_map[parameter]
            yield HeldSlice(
                parameter=parameter,
                start=ranges["param"].start,
                end=ranges["param"].end,
                main=member.optimizer.param_groups[group]["params"][order],
                optimizer=member.optimizer,
                split=True,
            )


def _whole_parameters(member: Any) -> Iterator[HeldSlice]:
    for parameter, main in _pairs(member):
        yield HeldSlice(
            parameter=parameter,
            start=0,
            end=parameter.numel(),
            main=main,
            optimizer=member.optimizer,
            split=False,
        )


def _pairs(member: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's parameters, and what a replicated optimizer moves for each."""
    if isinstance(member, FP32Optimizer):
        for parameter in member.get_parameters():
            yield parameter, parameter
        return
    groups = zip(member.float16_groups, member.fp32_from_float16_groups, strict=True)
    for parameters, mains in groups:
        yield from zip(parameters, mains, strict=True)
    for parameters in member.fp32_from_fp32_groups:
        yield from ((parameter, parameter) for parameter in parameters)


def _state_boxes(
    held: HeldSlice, name: str, state: Tensor, weights: Sequence[ShardedTensor]
) -> Iterator[ShardedTensor]:
    flat = state.detach().view(-1)
    row_start = 0  # of the box of the weights in the flattened parameter
    for weight in weights:
        shape = tuple(weight.local_shape)
        row_end = row_start + torch.Size(shape).numel()
        start, end = max(held.start, row_start), min(held.end, row_end)
        if start < end:
            for box in boxes_of_slice(start - row_start, end - row_start, shape):
                first = row_start + box.start - held.start
                yield ShardedTensor(
                    key=f"optimizer.state.{name}.{weight.key}",
                    data=flat[first : first + box.numel].view(box.shape),
                    dtype=state.dtype,
                    local_shape=box.shape,
                    global_shape=weight.global_shape,
                    global_offset=tuple(
                        whole + part
                        for whole, part in zip(weight.global_offset, box.offset, strict=True)
                    ),
                    axis_fragmentations=None,
                    replica_id=_replica(weight.replica_id, split=held.split),
                )
        row_start = row_end


def _replica(weight: Any, *, split: bool) -> Any:
    return (*weight[:-1], ONLY_HERE) if split else weight


@dataclass(frozen=True, kw_only=True)
class SliceBox:
    """A box within a row-major tensor that is contiguous in it."""

    start: int
    """Its first element in the flattened tensor."""
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def boxes_of_slice(start: int, end: int, shape: tuple[int, ...]) -> list[SliceBox]:
    """Elements [start, end) of a flattened vector or matrix as boxes of it, first to last."""
    assert 0 <= start < end <= torch.Size(shape).numel() and len(shape) in (1, 2)
    if len(shape) == 1:
        return [SliceBox(start=start, offset=(start,), shape=(end - start,))]
    width = shape[1]
    boxes: list[SliceBox] = []
    while start < end:
        row, column = divmod(start, width)
        if column == 0 and end - start >= width:
            box = (end // width - row, width)
        else:
            box = (1, min(end - start, width - column))
        boxes.append(SliceBox(start=start, offset=(row, column), shape=box))
        start += box[0] * box[1]
    return boxes


def _address(tensor: Tensor | None) -> int:
    assert tensor is not None
    return tensor.data_ptr()
