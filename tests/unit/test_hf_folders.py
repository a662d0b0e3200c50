"""Hugging Face folders: files of a bounded size, an index, and nothing but safetensors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsm_engine.data.tokenizers import load_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.hf_names import hf_shapes, parameter_shapes
from dsm_engine.model.hf_weights import write_hf_folder
from dsm_engine.model.safetensors_files import SafetensorsFolder
from dsm_engine.training.convert import convert
from tests.chat_tokenizers import CHATML, write_tokenizer

MODEL = ModelConfig(
    num_layers=3,
    hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=96,
    vocab_size=512,
)
SHARD_BYTES = 100_000
INDEX = "model.safetensors.index.json"


def _weights(model: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for name, shape in parameter_shapes(model).items():
        values = torch.randn(shape, generator=generator) * 0.1
        yield name, values + 1 if len(shape) == 1 else values


def _write(folder: Path, model: ModelConfig = MODEL, *, shard_bytes: int = SHARD_BYTES) -> Path:
    write_hf_folder(
        _weights(model),
        model,
        "fp32",
        folder,
        bos_id=1,
        eos_id=2,
        generation=None,
        shard_bytes=shard_bytes,
    )
    write_tokenizer(folder, "byte_level", config={"bos_token": "<s>", "eos_token": "</s>"})
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several files."""
    return _write(tmp_path_factory.mktemp("sharded"))


def test_files_are_no_larger_than_asked_for_and_the_index_names_every_tensor(
    sharded: Path,
) -> None:
    index = read_json(sharded / INDEX)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    numbers = range(1, len(files) + 1)
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in numbers]
    assert len(files) > 3
    found: dict[str, str] = {}
    total = 0
    for name in files:
        with safe_open(str(sharded / name), framework="pt") as file:
            sizes = [file.get_tensor(tensor).nbytes for tensor in file.keys()]  # noqa: SIM118
            found |= dict.fromkeys(file.keys(), name)
        assert len(sizes) == 1 or sum(sizes) <= SHARD_BYTES
        total += sum(sizes)
    assert index["weight_map"] == found
    assert found.keys() == hf_shapes(MODEL).keys()
    assert index["metadata"]["total_size"] == total == MODEL.num_parameters * 4


def test_a_model_that_fits_one_file_has_no_index(tmp_path: Path) -> None:
    num_bytes = MODEL.num_parameters * 4
    _write(tmp_path / "fits", shard_bytes=num_bytes)
    assert [path.name for path in (tmp_path / "fits").glob("model*")] == ["model.safetensors"]
    _write(tmp_path / "one_byte_less", shard_bytes=num_bytes - 1)
    assert len(list((tmp_path / "one_byte_less").glob("model*"))) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_several_files_as_it_reads_one(tmp_path: Path, tied: bool) -> None:
    from transformers import LlamaForCausalLM

    model = MODEL.model_copy(update={"tie_word_embeddings": tied})
    tokens = torch.arange(40)[None]
    logits = []
    for shard_bytes in (SHARD_BYTES, 10**9):
        folder = _write(tmp_path / str(shard_bytes), model, shard_bytes=shard_bytes)
        theirs, info = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            logits.append(theirs(tokens).logits)
    assert logits[0].std() > 0.1
    assert torch.equal(*logits)


def test_sharded_folders_and_checkpoints_become_each_other_bit_for_bit(
    sharded: Path, tmp_path: Path
) -> None:
    convert(sharded, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back", shard_bytes=SHARD_BYTES)
    for path in sharded.glob("model*"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    convert(tmp_path / "run", tmp_path / "bf16", precision="bf16")
    halves = load_file(tmp_path / "bf16" / "model.safetensors")
    for name, tensor in _tensors(sharded).items():
        assert torch.equal(halves[name], tensor.bfloat16()), name
    assert read_json(tmp_path / "bf16" / "config.json")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "readable"),
    [("float16", True), ("bfloat16", True), ("float64", False), ("int8", False)],
)
def test_floats_of_16_and_32_bits_are_read_and_nothing_else(
    sharded: Path, tmp_path: Path, dtype: str, readable: bool
) -> None:
    tensors = _tensors(sharded)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(getattr(torch, dtype))
    folder = _folder_of(sharded, tensors, tmp_path / "hf")
    if not readable:
        with pytest.raises(DsmError, match=rf"{name} is of type .*F32, BF16, F16"):
            convert(folder, tmp_path / "run")
        return
    convert(folder, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert torch.equal(back[name], tensors[name].float())


def test_pickled_weights_are_refused(sharded: Path, tmp_path: Path) -> None:
    folder = _folder_of(sharded, {}, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save(_tensors(sharded), folder / "pytorch_model.bin")
    with pytest.raises(DsmError, match=r"pytorch_model\.bin is a pickle.*safetensors only"):
        convert(folder, tmp_path / "run")


def test_tensors_left_over_are_refused_and_rope_frequencies_are_not(
    sharded: Path, tmp_path: Path
) -> None:
    tensors = _tensors(sharded)
    frequencies = {"model.layers.2.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    convert(_folder_of(sharded, tensors | frequencies, tmp_path / "old"), tmp_path / "run")
    more = {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}
    with pytest.raises(DsmError, match=r"1 tensors have no place, first .*q_proj\.bias"):
        convert(_folder_of(sharded, tensors | more, tmp_path / "biased"), tmp_path / "other")


def test_an_index_that_names_files_elsewhere_is_refused(sharded: Path, tmp_path: Path) -> None:
    weight_map = read_json(sharded / INDEX)["weight_map"]
    for file in ("../model.safetensors", "/etc/passwd", "model.bin", 3):
        write_json(tmp_path / INDEX, {"weight_map": {**weight_map, "lm_head.weight": file}})
        with pytest.raises(DsmError, match=r"lm_head\.weight is in .*not a \.safetensors file"):
            SafetensorsFolder(tmp_path)


def test_a_file_cut_short_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = _folder_of(sharded, _tensors(sharded), tmp_path / "hf")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(DsmError, match=r"model\.safetensors: cannot be read"):
        convert(folder, tmp_path / "run")


def test_generation_config_tokenizer_and_chat_template_come_back(
    sharded: Path, tmp_path: Path
) -> None:
    folder = _folder_of(sharded, _tensors(sharded), tmp_path / "hf")
    eos_id = load_tokenizer(folder).eos_id
    kept = {"eos_token_id": [7, eos_id], "temperature": 0.6, "top_p": 0.95, "do_sample": True}
    write_json(folder / "generation_config.json", kept)
    (folder / "chat_template.jinja").write_text(CHATML)
    convert(folder, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name
    config = read_json(tmp_path / "back" / "tokenizer_config.json")
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")


def test_the_token_that_ends_answers_joins_those_of_the_generation_config(
    sharded: Path, tmp_path: Path
) -> None:
    eos_id = read_json(sharded / "config.json")["eos_token_id"]
    for number, (before, after) in enumerate(
        ((5, [5, eos_id]), ([5, 6], [5, 6, eos_id]), (None, eos_id), ([eos_id, 4], [eos_id, 4]))
    ):
        folder = tmp_path / str(number)
        write_hf_folder(
            _weights(MODEL),
            MODEL,
            "fp32",
            folder,
            bos_id=None,
            eos_id=eos_id,
            generation={"eos_token_id": before, "top_k": 9},
            shard_bytes=10**9,
        )
        found = read_json(folder / "generation_config.json")
        assert found == {"eos_token_id": after, "top_k": 9}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def _folder_of(like: Path, tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    """A folder with these tensors in one file, and all but the weights of another."""
    folder.mkdir()
    for path in like.iterdir():
        if not path.name.startswith("model"):
            (folder / path.name).write_bytes(path.read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return folder
