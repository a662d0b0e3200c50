"""What ranks hold and send under several layouts, counted in one torchrun job.

  torchrun --nproc-per-node 4 plan_worker.py JOBS.json
JOBS.json is a list of {"recipe": {...}, "output": PREFIX}; rank r writes PREFIX.r.json: numbers of
elements and bytes, what one step sends by kind of collective and group, and without PP what
autograd keeps of a layer.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.live_memory import LiveBytes, SavedBytes

LEAST_NUMEL = 64  # smaller tensors are counts, norms and losses
KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "send": "send",
}


class SentBytes(TorchDispatchMode):
    """Adds up the payloads of collectives and messages, by kind and size of the group."""

    def __init__(self, groups: dict[str, Any]) -> None:
        super().__init__()
        self._groups = groups
        self.payloads: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            if name in KINDS:
                self._count(KINDS[name], args)
            else:
                assert name.startswith(("recv", "barrier", "broadcast", "monitored")), name
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, args: tuple[Any, ...]) -> None:
        # Of an all-gather the output comes first, of a reduce-scatter the input second.
        tensors = _tensors(args[1] if kind == "reduce_scatter" else args[0])
        numel = sum(tensor.numel() for tensor in tensors)
        if numel < LEAST_NUMEL:
            return
        group = "pp" if kind == "send" else self._group_name(args)
        if group is None:
            return
        key = f"{group} {kind}"
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.payloads[key] = self.payloads.get(key, 0) + size

    def _group_name(self, args: tuple[Any, ...]) -> str | None:
        """None for a rank alone, which sends nothing."""
        group = next(
            torch.distributed.ProcessGroup.unbox(arg)
            for arg in args
            if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type())
        )
        if group.size() == 1:
            return None
        return next(name for name, known in self._groups.items() if known == group)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)]


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        counts = _count_recipe(job["recipe"])
        output = Path(f"{job['output']}.{dist.get_rank()}.json")
        output.write_text(json.dumps(counts), encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()


def _count_recipe(values: dict[str, Any]) -> dict[str, Any]:
    from megatron.core import parallel_state

    from dsm_engine.model.gpt import build_chunks, initialize_weights
    from dsm_engine.parallel.context import parallel_context
    from dsm_engine.training.config import TrainRecipe
    from dsm_engine.training.optimizer import wrap_for_training
    from dsm_engine.training.run_data import open_run_data
    from dsm_engine.training.step import forward_backward, optimizer_step
    from dsm_engine.training.stream import PackStream

    recipe = TrainRecipe.model_validate(values)
    model, training = recipe.model, recipe.training
    assert model is not None
    data = open_run_data(recipe, model)
    with parallel_context(recipe.parallel, seed=1) as context:
        chunks = build_chunks(model, recipe.parallel, training.precision, context)
        initialize_weights(chunks, model, context, seed=1)
        wrapped, optimizer = wrap_for_training(chunks, training, recipe.parallel, context)
        stream = PackStream(data.train, data.train_packs, pad_id=0, seed=1, context=context)
        groups = {
            "tp": parallel_state.get_tensor_model_parallel_group(),
            "cp": parallel_state.get_context_parallel_group(),
            "pp": parallel_state.get_pipeline_model_parallel_group(),
            "dp": parallel_state.get_data_parallel_group(with_context_parallel=True),
            "embedding": parallel_state.get_embedding_group(check_initialized=False),
        }
        groups = {
            name: group
            for name, group in groups.items()
            if isinstance(group, torch.distributed.ProcessGroup)
        }

        def run_passes() -> None:
            forward_backward(
                wrapped,
                stream.micro_batches(stream.packs_of_step(0, training.global_batch_size)),
                num_micro_batches=training.global_batch_size // context.dp_size,
                seq_length=recipe.data.seq_length,
                context=context,
            )

        with SentBytes(groups) as sent:
            run_passes()
            optimizer_step(optimizer, context)
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        with LiveBytes() as live:
            run_passes()
        buffers = [buffer for chunk in wrapped for buffer in chunk.buffers]
        parameters = {p.data_ptr(): p for chunk in chunks for p in chunk.parameters()}
        return {
            "pp_rank": context.pp_rank,
            "dp_cp_rank": parallel_state.get_data_parallel_rank(with_context_parallel=True),
            "numel": sum(p.numel() for p in parameters.values()),
            "weights": _storage_bytes(list(parameters.values())),
            "gradients": sum(_bytes(buffer.grad_data) for buffer in buffers),
            "optimizer": _optimizer_bytes(optimizer, set(_storages(parameters.values()))),
            "payloads": sent.payloads,
            "peak": live.peak,
            "cp_rank": context.cp_rank,
            "documents": stream.micro_batch(0).packed_seq_params.lengths,
            "layer": _bytes_of_a_layer(recipe, stream, context) if context.pp_size == 1 else None,
        }


def _bytes_of_a_layer(recipe: Any, stream: Any, context: Any) -> int:
    """What a forward pass of one pack leaves behind with two layers, more than with one."""
    from dsm_engine.model.gpt import build_chunks, initialize_weights

    batch = stream.micro_batch(0)
    kept = []
    for num_layers in (2, 1):
        model = recipe.model.model_copy(update={"num_layers": num_layers})
        precision = recipe.training.precision
        (gpt,) = build_chunks(model, recipe.parallel, precision, context, attention="split")
        initialize_weights([gpt], model, context, seed=1)
        with SavedBytes(gpt) as saved:
            gpt(
                batch.tokens,
                batch.position_ids,
                None,
                labels=batch.labels,
                packed_seq_params=batch.packed_seq_params,
            )
        kept.append(saved.total)
    return kept[0] - kept[1]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storages(tensors: Any) -> dict[int, int]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _storage_bytes(tensors: list[torch.Tensor]) -> int:
    return sum(_storages(tensors).values())


def _optimizer_bytes(optimizer: Any, model_storages: set[int]) -> int:
    """Moments and main weights; counters (of one element) and views of the model left out."""
    total = 0
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                if parameter.untyped_storage().data_ptr() not in model_storages:
                    total += _bytes(parameter)
                state = inner.state[parameter]
                total += sum(_bytes(state[name]) for name in ("exp_avg", "exp_avg_sq"))
    return total


if __name__ == "__main__":
    main()
