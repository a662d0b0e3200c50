"""Megatron-LM's tools/preprocess_data.py as far as these benchmarks need it, with its own parts.

That script is not in the wheel of megatron-core; what it calls is: the tokenizers and
IndexedDatasetBuilder. As there, a pool of processes each parses and encodes a line, 32 at a time,
and this process adds the documents. Flags have the names they have there.
"""

import argparse
import json
import multiprocessing
from typing import Any

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer

_TOKENIZER: Any = None


def build_tokenizer(kind: str, model: str) -> Any:
    """What Megatron's build_tokenizer makes of the two flags."""
    if kind == "HuggingFaceTokenizer":
        settings = {"use_fast": True, "include_special_tokens": True}
        library = "huggingface"
    else:
        settings, library = {"legacy": False}, "sentencepiece"
    return MegatronTokenizer.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer_path=model, metadata_path={"library": library}, **settings
    )


def start_worker(kind: str, model: str) -> None:
    global _TOKENIZER
    _TOKENIZER = build_tokenizer(kind, model)


def encode(line: str) -> tuple[list[int], list[int]]:
    """The ids of a document with EOD, and the lengths of its sequences."""
    ids = _TOKENIZER.tokenize(json.loads(line)["text"])
    if len(ids) == 0:
        return [], []
    ids.append(_TOKENIZER.eod)
    return ids, [len(ids)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--input", "--output-prefix", "--tokenizer-type", "--tokenizer-model"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    tokenizer = (arguments.tokenizer_type, arguments.tokenizer_model)
    vocab_size = build_tokenizer(*tokenizer).vocab_size
    prefix = f"{arguments.output_prefix}_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    with (
        multiprocessing.Pool(arguments.workers, start_worker, tokenizer) as pool,
        open(arguments.input, encoding="utf-8") as lines,  # noqa: PTH123  # as there
    ):
        for ids, lengths in pool.imap(encode, lines, 32):
            builder.add_document(ids, lengths)  # pyright: ignore[reportArgumentType]
    builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main()
