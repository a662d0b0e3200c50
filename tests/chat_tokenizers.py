"""Small Hugging Face tokenizers with the control tokens of chat templates, for tests."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

TEXTS = [
    "system\nYou help.\nuser\nTom has 12 apples and buys 3 more.\nassistant\n12 + 3 = 15",
    "user\n\n小明有3个苹果，又买了4个。\nassistant\n\n```python\nprint(3 + 4)\n```",
    '\n```output\n7\n```\nThe answer is \\boxed{7}. [INST] Two  spaces \t and "quotes" [/INST]',
    "a <|im_end|> and a <s> in a text",
] * 4
CONTROLS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIPELINES = {
    "byte_level": {
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "decoder": decoders.ByteLevel(),
    },
    "prepend": {
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        ),
        "decoder": decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    },
    "metaspace_first": {
        "pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first"),
        "decoder": decoders.Metaspace(prepend_scheme="first"),
    },
}


def write_tokenizer(
    folder: Path, pipeline: str, *, config: dict[str, Any] | None = None, **token: Any
) -> Path:
    """A small tokenizer.json with the control tokens above; `token` is said of each."""
    model = tokenizers.Tokenizer(BPE(unk_token="<unk>"))
    for name, part in PIPELINES[pipeline].items():
        setattr(model, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if pipeline == "byte_level" else ["\n"]
    trainer = BpeTrainer(vocab_size=500, special_tokens=["<unk>"], initial_alphabet=alphabet)
    # By lines, so that no token joins what the engine cuts: it cuts at newlines here.
    model.train_from_iterator("".join(TEXTS).splitlines(), trainer)
    model.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False, **token) for name in CONTROLS]
    )
    model.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"} | (config or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
