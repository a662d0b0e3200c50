"""Between this engine's checkpoints and Hugging Face folders, in both directions."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_engine.data.tokenizers import Tokenizer, load_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder
from dsm_engine.model.config import Precision
from dsm_engine.model.gpt import build_gpt
from dsm_engine.model.hf_names import parameter_shapes
from dsm_engine.model.hf_weights import (
    load_hf_weights,
    read_generation_config,
    read_hf_config,
    read_hf_precision,
    write_hf_folder,
)
from dsm_engine.model.safetensors_files import DEFAULT_SHARD_BYTES
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.parallel.context import ParallelContext, parallel_context
from dsm_engine.training.checkpoint import (
    CheckpointDescription,
    describe_checkpoint,
    latest_checkpoint,
    save_checkpoint,
)
from dsm_engine.training.run_folder import TOKENIZER_FOLDER, keep_generation_config
from dsm_engine.training.saved_tensors import open_saved_tensors

_WHOLE = ParallelConfig()


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did."""

    source: Path
    destination: Path
    num_parameters: int
    direction: str


def convert(
    source: Path,
    destination: Path,
    *,
    precision: Precision | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Conversion:
    """Converts by what `source` is: a GGUF file, a Hugging Face folder, a checkpoint or a run.

    A GGUF file becomes a Hugging Face folder; a Hugging Face folder becomes a run folder with
    the weights as the checkpoint of step 0; a checkpoint (a run means its latest) becomes a
    Hugging Face folder, whose files are at most `shard_bytes` large. `precision` defaults to the
    source's. Raises DsmError where the source is none of these or the destination exists.

    A checkpoint is read and written a tensor at a time; weights of a Hugging Face folder are in
    memory once.
    """
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise DsmError(f"{destination}: is already there; choose another destination")
    if not source.exists():
        raise DsmError(f"{source}: does not exist")
    if source.is_file() and source.suffix == ".gguf":
        return _gguf_to_hf(source, destination, precision or "fp32")
    if (source / "config.json").exists():
        return _hf_to_checkpoint(source, destination, precision or read_hf_precision(source))
    checkpoint = source
    if (source / "checkpoints").is_dir():
        checkpoint = latest_checkpoint(source) or source
    if (checkpoint / "dsm.json").exists():
        return _checkpoint_to_hf(checkpoint, destination, precision, shard_bytes)
    raise DsmError(
        f"{source}: is neither a checkpoint (dsm.json), a run (checkpoints/latest), a Hugging "
        f"Face folder (config.json) nor a .gguf file"
    )


def _checkpoint_to_hf(
    checkpoint: Path, destination: Path, precision: Precision | None, shard_bytes: int
) -> Conversion:
    description = describe_checkpoint(checkpoint)
    model = description.model
    run = checkpoint.parent.parent
    tokenizer = _tokenizer_of(run)
    with _one_rank() as context, _whole_or_nothing(destination) as aside:
        saved = open_saved_tensors(checkpoint, description, context)
        write_hf_folder(
            ((name, saved.read(name, shape)) for name, shape in parameter_shapes(model).items()),
            model,
            precision or description.precision,
            aside,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            generation=read_generation_config(run),
            shard_bytes=shard_bytes,
        )
        tokenizer.save(aside)
    return Conversion(
        source=checkpoint,
        destination=destination,
        num_parameters=model.num_parameters,
        direction="checkpoint to Hugging Face",
    )


def _hf_to_checkpoint(folder: Path, destination: Path, precision: Precision) -> Conversion:
    model = read_hf_config(folder)
    with _one_rank() as context, _whole_or_nothing(destination) as aside:
        gpt = build_gpt(model, _WHOLE, precision, context)
        load_hf_weights([gpt], model, context, folder)
        description = CheckpointDescription(
            step=0, model=model, precision=precision, stream={}, optimizer=None
        )
        save_checkpoint(aside, description, [gpt], None, context, keep=1)
        load_tokenizer(folder).save(aside / TOKENIZER_FOLDER)
        keep_generation_config(folder, aside)
    return Conversion(
        source=folder,
        destination=destination,
        num_parameters=model.num_parameters,
        direction="Hugging Face to checkpoint",
    )


def _gguf_to_hf(source: Path, destination: Path, precision: Precision) -> Conversion:
    try:
        from transformers import AutoTokenizer, LlamaForCausalLM
    except ImportError as error:
        raise DsmError(
            f"{source}: GGUF files are read by transformers and gguf: "
            f"pip install 'dsm-engine[eval]' gguf"
        ) from error
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    folder, name = str(source.parent), source.name
    try:
        loaded = LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DsmError(f"{source}: transformers cannot read it: {reason}") from error
    # A fresh model saves plain safetensors; the loaded one remembers its quantisation.
    config: Any = loaded.config
    config.architectures = ["LlamaForCausalLM"]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = LlamaForCausalLM(config)
    torch.nn.Module.to(fresh, dtype)
    fresh.load_state_dict(loaded.state_dict())
    with _whole_or_nothing(destination) as aside:
        fresh.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return Conversion(
        source=source,
        destination=destination,
        num_parameters=sum(p.numel() for p in fresh.parameters()),
        direction="GGUF to Hugging Face",
    )


def _one_rank() -> AbstractContextManager[ParallelContext]:
    return parallel_context(_WHOLE, seed=0)


@contextmanager
def _whole_or_nothing(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its name when the block ends without an error."""
    if not destination.name:
        raise DsmError(f"{destination}: names no folder")
    aside = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    make_folder(aside)
    try:
        yield aside
        if destination.exists():
            destination.rmdir()  # empty, as `convert` has checked
        aside.rename(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tokenizer_of(run: Path) -> Tokenizer:
    folder = run / TOKENIZER_FOLDER
    if not folder.is_dir():
        raise DsmError(
            f"{folder}: the run's tokenizer is missing; copy the tokenizer it was trained with "
            f"there, so that the exported model carries it"
        )
    return load_tokenizer(folder)
