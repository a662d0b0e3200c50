"""Greedy generation by a Llama model in Hugging Face format, on CPU or GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsm_engine.data.tokenizers import Tokenizer, encode_prompt
from dsm_engine.errors import DsmError
from dsm_engine.evaluation.backend import FinishReason, Generation, GenerationParams, Prompt
from dsm_engine.files import read_json
from dsm_engine.programs import end_of_first_program

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
_TAIL_TOKENS = 32  # how far back a stop string can begin


class TransformersBackend:
    """`transformers.LlamaForCausalLM` with batches, left padding and a KV cache.

    The loop is its own, so that the token ids are exactly those of the engine's tokenizer.
    `device` is `cpu`, `cuda`, `cuda:N` or `auto`. Raises DsmError where the folder holds no such
    model, its weights are not those of its config.json, or the tokenizer has more tokens than it.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        tokenizer: Tokenizer,
        device: str = "auto",
        batch_size: int = 16,
        precision: Precision = "fp32",
        adds_bos: bool = True,
        answer_end: str | None = None,
    ) -> None:
        """`adds_bos` and `answer_end` are the template's; EOS ends an answer too."""
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
        self._adds_bos = adds_bos
        self._eos_ids = {tokenizer.eos_id, *_as_list(self._model.generation_config.eos_token_id)}
        if answer_end is not None and (end_id := tokenizer.control_id(answer_end)) is not None:
            self._eos_ids.add(end_id)

    def room(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `Backend`: what is left of the model's `max_position_embeddings`."""
        return [self._max_positions - len(self._encode(prompt)) for prompt in prompts]

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Backend`. A text ends (`length`) with the last of the model's positions; where the
        prompt fills them, as in the later rounds of a tool loop it may, the text is empty."""
        import torch

        rows = [
            _Row(
                self._encode(prompt),
                begins=prompt[-1].control and self._tokenizer.begins_after_control,
            )
            for prompt in prompts
        ]
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

    def _encode(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self._tokenizer, prompt, add_bos=self._adds_bos)

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
            row.finish(self._decode(row), "eos")
            return
        row.generated.append(token)
        tail = self._tokenizer.decode(row.generated[-_TAIL_TOKENS:], continuation=True)
        if "```" in tail or any(stop in tail for stop in params.stop):
            text = self._decode(row)
            end = _stop_position(text, params)
            if end is not None:
                row.finish(text[:end], "stop")
                return
        if len(row.generated) >= row.max_new:
            row.finish(self._decode(row), "length")

    def _decode(self, row: _Row) -> str:
        return self._tokenizer.decode(row.generated, continuation=not row.begins)


class _Row:
    """One prompt on its way."""

    def __init__(self, prompt: list[int], *, begins: bool = False) -> None:
        self.prompt = prompt
        self.begins = begins
        """Whether what is generated is decoded as the beginning of a text."""
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

    _check_config(path / "config.json")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    try:
        with _quiet_transformers():
            loaded: Any = LlamaForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the info, and refused below
            )
    except Exception as error:  # transformers and safetensors raise many kinds for a bad folder
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DsmError(f"{path}: the model cannot be loaded: {reason:.200}") from error
    model, info = loaded
    _check_loaded(path, info, tied=model.config.tie_word_embeddings)
    return model.eval().to(device)


def _check_config(path: Path) -> None:
    if not path.is_file():
        raise DsmError(f"{path}: no Hugging Face model there; dsm convert exports one")
    config = read_json(path)
    if not isinstance(config, dict):
        raise DsmError(f"{path}: is no Hugging Face model's: expected keys and values")
    if config.get("model_type") != "llama":
        raise DsmError(
            f"{path}: model_type is {config.get('model_type')!r:.80}; 'llama' is what runs here"
        )


def _check_loaded(path: Path, info: dict[str, Any], *, tied: bool) -> None:
    """That every weight of the model came from the folder, and the reverse."""
    mismatched = {name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]}
    allowed = {"lm_head.weight"} if tied else set()
    for what, names in (
        ("has no weights for", info["missing_keys"] - mismatched),
        ("has weights of another shape than config.json says for", mismatched),
        ("has weights the model of its config.json has no place for:", info["unexpected_keys"]),
    ):
        if faulty := sorted(names - allowed):
            more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
            raise DsmError(
                f"{path}: {what} {faulty[0]}{more}; export the model again, or correct config.json"
            )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars and its report of the weights, which becomes one line of ours."""
    from transformers.utils import logging as reports

    verbosity = reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)


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
