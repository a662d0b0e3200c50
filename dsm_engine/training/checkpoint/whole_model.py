"""This rank's weights as boxes of the whole model's tensors, under the whole model's names.

Megatron says of each parameter which part of the whole it is (`sharded_state_dict`: tensor
parallelism, the two projections stacked in `linear_fc1`, the number of a layer across stages and
chunks). torch's distributed checkpoints are told of boxes, and read any box from any others.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.dist_checkpointing.strategies.checkpointable import (
    CheckpointableShardedTensor,
    LocalShardsContainer,
)
from megatron.core.models.gpt import GPTModel

ONLY_HERE = -1
"""Data-parallel replica of a box that no other rank of the group holds."""


def weight_boxes(chunks: Sequence[GPTModel]) -> list[list[ShardedTensor]]:
    """A list a parameter of this rank: the boxes that its rows make up, from the first to the last.

    The boxes' data are views of the parameters. The last number of a `replica_id` is the rank
    within the data-parallel group (context parallelism included), all of which hold the same; the
    numbers before it are 0 on the ranks that write.
    """
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "non_homogeneous_layers": True,  # a tensor a layer, not all layers of a kind in one
        "singleton_local_shards": False,
    }
    parameters: list[list[ShardedTensor]] = []
    for chunk in chunks:
        for entry in nested_values(chunk.sharded_state_dict(metadata=metadata)):
            if isinstance(entry, ShardedObject):
                continue  # what Transformer Engine would keep beside FP8 weights; always empty
            parameters.append(_boxes(entry))
    return parameters


def own_boxes(boxes: Sequence[ShardedTensor]) -> list[ShardedTensor]:
    """Those that this rank writes: each box on one of the ranks that hold it, and the data-parallel
    ranks about as much each."""
    group: Any = parallel_state.get_data_parallel_group(with_context_parallel=True)
    rank = dist.get_rank(group)
    num_elements = [0] * dist.get_world_size(group)
    own: list[ShardedTensor] = []
    for box in sorted(boxes, key=_num_elements, reverse=True):
        *others, replica = cast(tuple[int, ...], box.replica_id)
        if any(others):
            continue
        if replica == ONLY_HERE:
            own.append(box)
            continue
        assert replica == rank, box
        writer = num_elements.index(min(num_elements))
        num_elements[writer] += _num_elements(box)
        if writer == rank:
            own.append(box)
    return own


def _num_elements(box: ShardedTensor) -> int:
    return torch.Size(box.local_shape).numel()


def _boxes(entry: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    if isinstance(entry, ShardedTensor):
        return [entry]
    parts: Any = entry.build()
    assert sum(part.data.numel() for part in parts) == entry.data.numel()
    return list(parts)


def torch_state(boxes: Iterable[ShardedTensor]) -> dict[str, Any]:
    """The boxes by the name of their tensor, as torch's distributed checkpoints take them."""
    by_key: dict[str, list[CheckpointableShardedTensor]] = defaultdict(list)
    for box in boxes:
        assert box.data is not None
        box.data = box.data.detach()
        by_key[box.key].append(CheckpointableShardedTensor.from_sh_ten(box))
    return {
        key: parts[0] if len(parts) == 1 else LocalShardsContainer(list[torch.Tensor](parts))
        for key, parts in by_key.items()
    }
