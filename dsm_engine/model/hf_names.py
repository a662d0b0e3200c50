"""How the parameters of Megatron's model and of transformers' Llama correspond: the same numbers
under other names.

Both sides rotate halves in RoPE, so no row is permuted; Megatron stacks the query heads of each
key-value group with that group's key and value, and stacks gate on up.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import NamedShard

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
_PLAIN = {
    EMBEDDING: "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
_PLAIN_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_QKV = "self_attention.linear_qkv.weight"
_GATE_UP = "mlp.linear_fc1.weight"
_STACKED_IN_LAYER = {
    _QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    _GATE_UP: ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}

Take = Callable[[str, int | None, int, int], Tensor]
"""`take(name, dim, part, parts)`: that part of a Hugging Face tensor cut into equal parts along
`dim`; all of it where that is None."""


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Megatron's parameters of the whole model and their shapes, in the order of the data."""
    hidden, ffn, vocab = model.hidden_size, model.ffn_hidden_size, model.vocab_size
    heads = model.num_attention_heads + 2 * model.num_query_groups
    in_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        _QKV: (heads * model.head_dim, hidden),
        "self_attention.linear_proj.weight": (hidden, hidden),
        "pre_mlp_layernorm.weight": (hidden,),
        _GATE_UP: (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab, hidden)}
    for layer in range(model.num_layers):
        shapes |= {f"decoder.layers.{layer}.{name}": shape for name, shape in in_layer.items()}
    shapes["decoder.final_layernorm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes[OUTPUT] = (vocab, hidden)
    return shapes


def hf_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the model's Hugging Face folder and their shapes, in `parameter_shapes`'
    order."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    groups = model.num_query_groups * model.head_dim
    stacked: dict[str, tuple[tuple[int, ...], ...]] = {
        _QKV: ((hidden, hidden), (groups, hidden), (groups, hidden)),
        _GATE_UP: ((ffn, hidden), (ffn, hidden)),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in parameter_shapes(model).items():
        parts = stacked.get(_inner_name(name), (shape,))
        shapes |= dict(zip(hf_names(name), parts, strict=True))
    return shapes


def hf_names(name: str) -> tuple[str, ...]:
    """The Hugging Face tensors a parameter is made of."""
    if name in _PLAIN:
        return (_PLAIN[name],)
    layer = name.removeprefix("decoder.layers.").partition(".")[0]
    inner = _inner_name(name)
    parts = _STACKED_IN_LAYER.get(inner) or (_PLAIN_IN_LAYER[inner],)
    return tuple(f"model.layers.{layer}.{part}" for part in parts)


def fill_from_hf(shard: NamedShard, model: ModelConfig, take: Take) -> None:
    """Fills this rank's shard of a parameter, of which it takes no more than it holds."""
    name = EMBEDDING if model.tie_word_embeddings and shard.name == OUTPUT else shard.name
    target = shard.parameter.detach()
    dim = shard.partition_dim
    parts = [take(part, dim, shard.tp_rank, shard.tp_size) for part in hf_names(name)]
    if _inner_name(name) == _QKV:
        by_group = target.view(model.num_query_groups // shard.tp_size, -1, model.hidden_size)
        row = 0
        for part in parts:
            rows_of_group = part.view(len(by_group), -1, model.hidden_size)
            by_group[:, row : row + rows_of_group.size(1)].copy_(rows_of_group)
            row += rows_of_group.size(1)
    else:
        row = 0
        for part in parts:
            target[row : row + len(part)].copy_(part)
            row += len(part)


def to_hf(name: str, tensor: Tensor, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of a whole parameter; views of it where its rows allow."""
    inner, names = _inner_name(name), hf_names(name)
    if inner == _QKV:
        groups, head_dim, hidden = model.num_query_groups, model.head_dim, model.hidden_size
        by_group = tensor.view(groups, -1, hidden)  # [groups, (heads / groups + 2) * head_dim, h]
        for part_name, part in zip(
            names, by_group.split([hidden // groups, head_dim, head_dim], dim=1), strict=True
        ):
            yield part_name, part.reshape(-1, hidden)
    else:
        yield from zip(names, tensor.chunk(len(names)), strict=True)


def join_shards(name: str, shards: Sequence[Tensor], partition_dim: int | None) -> Tensor:
    """The whole parameter from the shards of all TP ranks, in their order."""
    if partition_dim is None or len(shards) == 1:
        return shards[0]
    if _inner_name(name) == _GATE_UP:
        # Gate and up projections are stacked, and each is split by itself.
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([*gates, *ups])
    return torch.cat(list(shards), dim=partition_dim)


def _inner_name(name: str) -> str:
    """`decoder.layers.3.x.weight` -> `x.weight`; other names stay."""
    prefix, found, rest = name.partition("decoder.layers.")
    return rest.partition(".")[2] if found and not prefix else name
