"""This rank's weights as boxes of the whole model's tensors, under the whole model's names.

Megatron says of each parameter which part of the whole it is (`sharded_state_dict`: tensor
parallelism, the two projections stacked in `linear_fc1`, the number of a layer across stages and
chunks). torch's distributed checkpoints are told of boxes, and read any box from any others.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
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


def weight_boxes(chunks: Sequence[GPTModel]) -> list[list[ShardedTensor]]:
    """A list a parameter of this rank: the boxes that its rows make up, from the first to the last.

    The boxes' data are views of the parameters. A replica other than the first, under data
    parallelism say, has a replica_id with a number other than 0.
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
