"""A dataset with one document that weights can be made to stumble over, and such weights."""

import shutil
from pathlib import Path

import numpy as np
import orjson
from safetensors.torch import load_file, save_file

from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sample_set import tokenizer_symbols
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import train_sentencepiece

STRANGE = "ÿ"
"""A character that one document has; a piece of the tokenizer of its own."""


def write_poisoned_data(sample_data: Path, folder: Path, *, document: int) -> int:
    """The sample data with a strange character before the question of one document, which keeps
    its number; returns the token of that character."""
    folder.mkdir()
    tokenizer = folder / "tokenizer.model"
    texts = (sample_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    symbols = (*tokenizer_symbols(), STRANGE)
    train_sentencepiece(texts, path=tokenizer, vocab_size=512, symbols=symbols)
    for name, number in (("train", document), ("validation", None)):
        records = [orjson.loads(line) for line in (sample_data / f"{name}.jsonl").open("rb")]
        if number is not None:
            records[number]["question"] = STRANGE + records[number]["question"]
        path = folder / f"{name}.jsonl"
        path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
        sources = [{"reader": "examples", "path": path}]
        recipe = {"output": folder / name, "tokenizer": tokenizer, "sources": sources}
        preprocess(PreprocessRecipe.model_validate(recipe))
    dataset = TokenizedDataset(folder / "train")
    documents = [np.asarray(dataset.document(i)) for i in range(dataset.num_documents)]
    counts = np.sum([np.bincount(np.unique(d), minlength=512) for d in documents], axis=0)
    (token,) = [t for t in np.flatnonzero(counts == 1).tolist() if t in documents[document]]
    return token


def write_poisoned_weights(weights: Path, folder: Path, *, token: int, value: float) -> None:
    """A Hugging Face folder whose embedding of a token is `value`; its output layer is whole."""
    shutil.copytree(weights, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][token] = value
    save_file(tensors, path, metadata={"format": "pt"})
