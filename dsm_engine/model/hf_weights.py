"""Hugging Face Llama folders in and out, a tensor at a time, under every layout, bit for bit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder, read_json, write_json
from dsm_engine.model.config import ModelConfig, Precision, from_hf_config, to_hf_config
from dsm_engine.model.gpt import DTYPES, NamedShard, named_shards
from dsm_engine.model.hf_names import (
    fill_from_hf,
    hf_shapes,
    join_shards,
    parameter_shapes,
    to_hf,
)
from dsm_engine.model.safetensors_files import (
    DEFAULT_SHARD_BYTES,
    SafetensorsFolder,
    ShardedWriter,
)
from dsm_engine.parallel.context import ParallelContext

GENERATION_CONFIG = "generation_config.json"
_HF_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


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
    """Fills this rank's shards of its chunks from the safetensors of a Hugging Face folder.

    A rank reads what it holds and nothing else; all see the same names, so that none is left over
    unseen. Raises DsmError where a tensor is missing, left over, of another shape or no float of
    16 or 32 bits.
    """
    shapes = hf_shapes(model)
    tensors = SafetensorsFolder(folder)
    tensors.refuse_other_names(shapes, ignored=_derived_names(model))

    def take(name: str, dim: int | None, part: int, parts: int) -> Tensor:
        return tensors.take(name, shapes[name], dim, part, parts)

    for chunk in chunks:
        for shard in named_shards(chunk, context):
            fill_from_hf(shard, model, take)


def save_hf_model(
    chunks: Sequence[GPTModel],
    model: ModelConfig,
    context: ParallelContext,
    folder: Path,
    *,
    bos_id: int | None,
    eos_id: int,
    generation: dict[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes the weights all ranks hold together as a folder of transformers.

    All ranks together, from any layout; parameters are gathered one at a time and written by rank
    0, in their dtype. Under overlap_param_gather they must have been synchronized. `generation`
    as for `write_hf_folder`. Raises DsmError, on every rank, where the files cannot be written.
    """
    precision: Precision = "bf16" if chunks[0].config.bf16 else "fp32"
    weights = _gather_whole(chunks, model, context)
    fault: list[str | None] = [None]
    if context.rank == 0:
        try:
            write_hf_folder(
                weights,
                model,
                precision,
                folder,
                bos_id=bos_id,
                eos_id=eos_id,
                generation=generation,
                shard_bytes=shard_bytes,
            )
        except DsmError as error:
            fault = [str(error)]
    for _ in weights:  # the others send; so does what rank 0 did not come to
        pass
    dist.broadcast_object_list(fault, src=0)
    if fault[0] is not None:
        raise DsmError(fault[0])


def write_hf_folder(
    weights: Iterator[tuple[str, Tensor]],
    model: ModelConfig,
    precision: Precision,
    folder: Path,
    *,
    bos_id: int | None,
    eos_id: int,
    generation: dict[str, Any] | None,
    shard_bytes: int,
) -> None:
    """Writes whole parameters, as they come, in files of at most `shard_bytes`; then their index
    where there are several, config.json and generation_config.json.

    `weights` are Megatron's, in the order of `parameter_shapes`. `generation` is the
    generation_config.json to keep; `eos_id` joins the tokens that end an answer there. Raises
    DsmError where a file cannot be written.
    """
    make_folder(folder)
    shapes, dtype = hf_shapes(model), DTYPES[precision]
    with ShardedWriter(folder, shapes, dtype, shard_bytes=shard_bytes) as writer:
        for name, whole in weights:
            for hf_name, tensor in to_hf(name, whole, model):
                writer.add(hf_name, tensor)
    config = to_hf_config(model, dtype=_HF_DTYPE_NAMES[precision], bos_id=bos_id, eos_id=eos_id)
    write_json(
        folder / GENERATION_CONFIG, _generation_config(generation, bos_id=bos_id, eos_id=eos_id)
    )
    write_json(folder / "config.json", config)


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """What generation_config.json in `folder` holds, or None where there is none."""
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise DsmError(f"{path}: a generation config is a JSON object")
    return values


def _generation_config(
    kept: dict[str, Any] | None, *, bos_id: int | None, eos_id: int
) -> dict[str, Any]:
    if kept is None:
        return {"bos_token_id": bos_id, "eos_token_id": eos_id, "do_sample": False}
    ends = kept.get("eos_token_id")
    known = ends if isinstance(ends, list) else [ends]
    if eos_id in known:
        return kept
    return {**kept, "eos_token_id": eos_id if ends is None else [*known, eos_id]}


def _derived_names(model: ModelConfig) -> list[str]:
    """What some folders hold though it follows from the rest: a tied output layer, and the RoPE
    frequencies that early versions of transformers stored."""
    names = [
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(model.num_layers)
    ]
    return [*names, "lm_head.weight"] if model.tie_word_embeddings else names


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """A rank with a shard of a parameter."""

    rank: int
    tp_rank: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    partition_dim: int | None


def _gather_whole(
    chunks: Sequence[GPTModel], model: ModelConfig, context: ParallelContext
) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters on the host of rank 0, one at a time, in the order of `parameter_shapes`;
    nothing on the others, which must go through it too."""
    held = {shard.name: shard for chunk in chunks for shard in named_shards(chunk, context)}
    holders = _holders(held, context)
    for name in parameter_shapes(model):
        parts = [_on_rank_0(held.get(name), holder, context) for holder in holders[name]]
        if context.rank == 0:
            received = [part for part in parts if part is not None]
            yield name, join_shards(name, received, holders[name][0].partition_dim)


def _holders(held: dict[str, NamedShard], context: ParallelContext) -> dict[str, list[_Holder]]:
    """For each parameter who holds it, in TP order; of equal copies one."""
    mine: list[tuple[str, _Holder]] = []
    if context.dp_rank == context.cp_rank == 0:
        mine = [
            (
                name,
                _Holder(
                    rank=context.rank,
                    tp_rank=shard.tp_rank,
                    shape=tuple(shard.parameter.shape),
                    dtype=shard.parameter.dtype,
                    partition_dim=shard.partition_dim,
                ),
            )
            for name, shard in held.items()
            if shard.partition_dim is not None or shard.tp_rank == 0
        ]
    everyone: list[Any] = [None] * context.world_size
    dist.all_gather_object(everyone, mine)
    holders: dict[str, list[_Holder]] = {}
    for name, holder in (entry for part in everyone for entry in part):
        holders.setdefault(name, []).append(holder)
    return {name: sorted(found, key=lambda one: one.tp_rank) for name, found in holders.items()}


def _on_rank_0(mine: NamedShard | None, holder: _Holder, context: ParallelContext) -> Tensor | None:
    """The holder's shard on rank 0, None elsewhere; `mine` is this rank's, where it has one."""
    if context.rank == holder.rank:
        assert mine is not None
        if context.rank == 0:
            return mine.parameter.detach().cpu()
        dist.send(mine.parameter.detach().contiguous(), dst=0)
    elif context.rank == 0:
        theirs = torch.empty(holder.shape, dtype=holder.dtype, device=context.device)
        dist.recv(theirs, src=holder.rank)
        return theirs.cpu()
    return None
