"""Greedy generation by a Llama model in Hugging Face format, on CPU or GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsm_engine.data.tokenizers import Tokenizer, encode_prompt
from dsm_engine.errors import DsmError
from dsm_engine.evaluation.backend import FinishReason, Generation, GenerationParams, Prompt
from dsm_engine.evaluation.programs import end_of_first_program

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
_TAIL_TOKENS = 32  # how far back a stop string can begin


class TransformersBackend:
    """`transformers.LlamaForCausalLM` with batches, left padding and a KV cache.

    The loop is its own, so that the token ids are exactly those of the engine's tokenizer.
    `device` is `cpu`, `cuda`, `cuda:N` or `auto`. Raises DsmError where the folder holds no such
    model or the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        tokenizer: Tokenizer,
        device: str = "auto",
        batch_size: int = 16,
        precision: Precision = "fp32",
    ) -> None:
        self._model = _load_model(model_path, _device(device), precision)
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        config = self._model.config
        if tokenizer.vocab_size > config.vocab_size:
            raise DsmError(
                f"{tokenizer.path}: has {tokenizer.vocab_size} tokens, the model in {model_path} "
                f"only {config.vocab_size}: it is not the model's tokenizer"
            )
        self._max_positions: int = config.max_position_embeddings
        self._eos_ids = {tokenizer.eos_id, *_as_list(self._model.generation_config.eos_token_id)}

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Backend`. A prompt that fills the model's positions gives an empty, cut text."""
        import torch

        rows = [_Row(encode_prompt(self._tokenizer, prompt)) for prompt in prompts]
        for row in rows:
            row.max_new = min(params.max_new_tokens, self._max_positions - len(row.prompt))
        longest_first = sorted(
            (row for row in rows if row.max_new > 0), key=lambda row: -len(row.prompt)
        )
        if progress is not None:
            progress(len(rows) - len(longest_first))
        with torch.inference_mode():
            for start in range(0, len(longest_first), self._batch_size):
                batch = longest_first[start : start + self._batch_size]
                self._generate_batch(batch, params)
                if progress is not None:
                    progress(len(batch))
        return [
            Generation(
                text=row.text, finish_reason=row.finish_reason, num_tokens=len(row.generated)
            )
            for row in rows
        ]

    def _generate_batch(self, rows: list[_Row], params: GenerationParams) -> None:
        import torch
        from transformers import DynamicCache

        device = self._model.device
        width = max(len(row.prompt) for row in rows)
        padding = torch.tensor([width - len(row.prompt) for row in rows], device=device)
        # [rows, width]: padding on the left, so that all rows go on at the same column.
        ids = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in rows])
        ids = ids.to(device)
        mask = (torch.arange(width, device=device)[None] >= padding[:, None]).long()
        positions = (torch.arange(width, device=device)[None] - padding[:, None]).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        active = rows
        while True:
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # [rows, vocabulary]
            # A vocabulary may be padded to a round size; those ids are no tokens.
            chosen = logits[:, : self._tokenizer.vocab_size].argmax(-1)
            for row, token in zip(active, chosen.tolist(), strict=True):
                if not row.finished:
                    self._append(row, token, params)
            unfinished = [idx for idx, row in enumerate(active) if not row.finished]
            if not unfinished:
                return
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            if 2 * len(unfinished) <= len(active):  # halving keeps the copying of caches rare
                kept = torch.tensor(unfinished, device=device)
                cache.batch_select_indices(kept)
                ids, positions, mask = ids[kept], positions[kept], mask[kept]
                active = [active[idx] for idx in unfinished]

    def _append(self, row: _Row, token: int, params: GenerationParams) -> None:
        if token in self._eos_ids:
            row.finish(self._decode(row.generated), "eos")
            return
        row.generated.append(token)
        tail = self._decode(row.generated[-_TAIL_TOKENS:])
        if "```" in tail or any(stop in tail for stop in params.stop):
            text = self._decode(row.generated)
            end = _stop_position(text, params)
            if end is not None:
                row.finish(text[:end], "stop")
                return
        if len(row.generated) >= row.max_new:
            row.finish(self._decode(row.generated), "length")

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, continuation=True)


class _Row:
    """One prompt on its way."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.generated: list[int] = []
        self.max_new = 0
        self.finished = False
        self.text = ""
        self.finish_reason: FinishReason = "length"

    def finish(self, text: str, reason: FinishReason) -> None:
        self.finished, self.text, self.finish_reason = True, text, reason


def _stop_position(text: str, params: GenerationParams) -> int | None:
    """Where the text is to end, None where it may go on."""
    ends = [text.find(stop) for stop in params.stop if stop in text]
    if params.stop_after_program and (end := end_of_first_program(text)) is not None:
        ends.append(end)
    return min(ends, default=None)


def _load_model(path: Path, device: torch.device, precision: Precision):
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    config_path = path / "config.json"
    try:
        model_type = json.loads(config_path.read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DsmError(f"{config_path}: no Hugging Face model there ({error})") from error
    if model_type != "llama":
        raise DsmError(f"{config_path}: model_type is {model_type!r}; 'llama' is what runs here")
    logging.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    try:
        model = LlamaForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DsmError(f"{path}: the model cannot be loaded: {reason}") from error
    return model.eval().to(device)  # pyright: ignore[reportArgumentType]


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DsmError(f"device {name!r}: write auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DsmError(f"device {name!r}: this machine has no CUDA device; use cpu")
    return device


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
