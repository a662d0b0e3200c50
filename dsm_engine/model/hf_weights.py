"""Hugging Face Llama weights in and out: the same tensors under other names, bit for bit.

Both sides rotate halves in RoPE, so no row is permuted; Megatron stacks the query heads of each
key-value group with that group's key and value, and stacks gate on up.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, read_json, write_json
from dsm_engine.model.config import ModelConfig, Precision, from_hf_config, to_hf_config
from dsm_engine.model.gpt import named_shards
from dsm_engine.parallel.context import ParallelContext

_PLAIN = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_PLAIN_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_ATTENTION = "self_attention.linear_qkv.weight"
_GATE_UP = "mlp.linear_fc1.weight"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def read_hf_config(folder: Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder."""
    path = folder / "config.json"
    return from_hf_config(read_json(path), str(path))


def read_hf_precision(folder: Path) -> Precision:
    """What the folder's weights are kept in; float16, which nothing here computes in, as fp32."""
    config = read_json(folder / "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype")
    return "bf16" if dtype == "bfloat16" else "fp32"


def load_hf_weights(
    chunks: Sequence[GPTModel], model: ModelConfig, context: ParallelContext, folder: Path
) -> None:
    """Fills this rank's shard from the safetensors of a Hugging Face folder.

    Raises DsmError where a tensor is missing, has another shape, or is left over.
    """
    with _SafetensorsFolder(folder) as tensors:
        used: set[str] = set()

        def take(name: str, shape: tuple[int, ...]) -> Tensor:
            used.add(name)
            tensor = tensors.get(name)
            if tuple(tensor.shape) != shape:
                raise DsmError(
                    f"{folder}: {name} has shape {tuple(tensor.shape)}, config.json says {shape}"
                )
            return tensor

        for shard in (shard for chunk in chunks for shard in named_shards(chunk, context)):
            full = _from_hf(shard.name, model, take)
            with torch.no_grad():
                shard.parameter.copy_(shard.shard_of(full))
        if context.pp_size == 1:
            left = sorted(tensors.names - used - {"lm_head.weight"})
            if left:
                raise DsmError(f"{folder}: {len(left)} tensors have no place, first {left[0]}")


def save_hf_model(
    gpt: GPTModel,
    model: ModelConfig,
    context: ParallelContext,
    folder: Path,
    *,
    bos_id: int | None,
    eos_id: int,
) -> None:
    """Writes config.json, generation_config.json and model.safetensors for transformers.

    Needs the whole model on this rank (TP = PP = 1); keeps the parameters' dtype.
    """
    assert context.tp_size == context.pp_size == 1, "export runs on an unsharded model"
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    dtype = torch.float32
    for shard in named_shards(gpt, context):
        dtype = shard.parameter.dtype
        for name, tensor in _to_hf(shard.name, shard.parameter.detach(), model):
            tensors[name] = tensor.to("cpu").contiguous()
    dtype_name = _DTYPE_NAMES[dtype]
    try:
        with atomic_file(folder / "model.safetensors") as file:
            save_file(tensors, file.name, metadata={"format": "pt"})
    except SafetensorError as error:
        raise DsmError(f"{folder}: the weights cannot be written: {error}") from error
    config = to_hf_config(model, dtype=dtype_name, bos_id=bos_id, eos_id=eos_id)
    generation = {"bos_token_id": bos_id, "eos_token_id": eos_id, "do_sample": False}
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "config.json", config)


Take = Callable[[str, tuple[int, ...]], Tensor]


def _from_hf(name: str, model: ModelConfig, take: Take) -> Tensor:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    if name in _PLAIN:
        if name == "output_layer.weight" and model.tie_word_embeddings:
            return take("model.embed_tokens.weight", (model.vocab_size, hidden))
        return take(_PLAIN[name], (hidden,) if "layernorm" in name else (model.vocab_size, hidden))
    prefix, inner = _layer_names(name)
    if inner in _PLAIN_IN_LAYER:
        shape = {"mlp.linear_fc2.weight": (hidden, ffn)}.get(inner, (hidden, hidden))
        return take(prefix + _PLAIN_IN_LAYER[inner], (hidden,) if "layernorm" in inner else shape)
    if inner == _GATE_UP:
        gate = take(prefix + "mlp.gate_proj.weight", (ffn, hidden))
        return torch.cat([gate, take(prefix + "mlp.up_proj.weight", (ffn, hidden))])
    assert inner == _ATTENTION, name
    groups, head_dim = model.num_query_groups, model.head_dim
    query = take(prefix + "self_attn.q_proj.weight", (hidden, hidden))
    key = take(prefix + "self_attn.k_proj.weight", (groups * head_dim, hidden))
    value = take(prefix + "self_attn.v_proj.weight", (groups * head_dim, hidden))
    by_group = [
        query.view(groups, hidden // groups, hidden),
        key.view(groups, head_dim, hidden),
        value.view(groups, head_dim, hidden),
    ]
    return torch.cat(by_group, dim=1).reshape(-1, hidden)


def _to_hf(name: str, tensor: Tensor, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    if name in _PLAIN:
        yield _PLAIN[name], tensor
        return
    prefix, inner = _layer_names(name)
    if inner in _PLAIN_IN_LAYER:
        yield prefix + _PLAIN_IN_LAYER[inner], tensor
    elif inner == _GATE_UP:
        gate, up = tensor.chunk(2)
        yield prefix + "mlp.gate_proj.weight", gate
        yield prefix + "mlp.up_proj.weight", up
    else:
        assert inner == _ATTENTION, name
        groups, head_dim, hidden = model.num_query_groups, model.head_dim, model.hidden_size
        by_group = tensor.view(groups, -1, hidden)  # [groups, (heads / groups + 2) * head_dim, h]
        query, key, value = by_group.split([hidden // groups, head_dim, head_dim], dim=1)
        yield prefix + "self_attn.q_proj.weight", query.reshape(-1, hidden)
        yield prefix + "self_attn.k_proj.weight", key.reshape(-1, hidden)
        yield prefix + "self_attn.v_proj.weight", value.reshape(-1, hidden)


def _layer_names(name: str) -> tuple[str, str]:
    """`decoder.layers.3.x.weight` -> (`model.layers.3.`, `x.weight`)."""
    start, _, rest = name.partition("decoder.layers.")
    assert not start and rest, name
    layer, _, inner = rest.partition(".")
    return f"model.layers.{layer}.", inner


def _weight_map(index: Path) -> dict[str, str]:
    values = read_json(index)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DsmError(f"{index}: has no weight_map; delete it if model.safetensors is whole")
    return weight_map


class _SafetensorsFolder:
    """The tensors of model.safetensors or of the shards its index names, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open_files: dict[Path, Any] = {}
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        if index.exists():
            weight_map = _weight_map(index)
            self._file_of = {name: folder / Path(file).name for name, file in weight_map.items()}
        elif single.exists():
            self._file_of = dict.fromkeys(self._open(single).keys(), single)
        else:
            raise DsmError(f"{folder}: holds no model.safetensors (nor its index.json)")

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def get(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise DsmError(f"{self._folder}: tensor {name} is missing")
        try:
            return self._open(self._file_of[name]).get_tensor(name)
        except SafetensorError as error:
            raise DsmError(f"{self._file_of[name]}: {error}") from error

    def __enter__(self) -> "_SafetensorsFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.clear()

    def _open(self, path: Path) -> Any:
        if path not in self._open_files:
            try:
                self._open_files[path] = safe_open(str(path), framework="pt")
            except (OSError, SafetensorError) as error:
                raise DsmError(f"{path}: cannot be read: {error}") from error
        return self._open_files[path]
