"""The Megatron model: isolation in a pack, and agreement with transformers on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsm_engine.errors import DsmError
from dsm_engine.files import read_json, write_json
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import build_gpt, initialize_weights
from dsm_engine.model.hf_weights import load_hf_weights, read_hf_config, save_hf_model
from dsm_engine.model.loss import supervised_loss
from dsm_engine.parallel.config import ParallelConfig

SHAPE = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "vocab_size": 160,
    "init_method_std": 0.1,
}
LENGTHS = (37, 1, 70, 20)


def _model(
    one_rank: Any,
    precision: str = "fp32",
    seed: int = 3,
    *,
    attention: str = "auto",
    **changes: Any,
) -> Any:
    config = ModelConfig(**{**SHAPE, **changes})
    gpt = build_gpt(
        config,
        ParallelConfig(),
        precision,  # type: ignore[arg-type]
        one_rank,
        attention=attention,
    )
    initialize_weights([gpt], config, one_rank, seed=seed)
    return config, gpt


def _pack(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randint(0, SHAPE["vocab_size"], (1, sum(LENGTHS)), generator=generator)
        for _ in range(2)
    )


def _token_losses(
    gpt: Any, tokens: torch.Tensor, labels: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = packed_sequences(cu_seqlens, lengths, max(lengths))
    return gpt(tokens, position_ids, None, labels=labels, packed_seq_params=packed)


def test_packed_loss_of_each_token_equals_that_of_the_document_alone(one_rank: Any) -> None:
    _, gpt = _model(one_rank)
    tokens, labels = _pack()
    packed = _token_losses(gpt, tokens, labels, LENGTHS)
    alone = torch.cat(
        [
            _token_losses(gpt, t, y, (t.size(1),))
            for t, y in zip(tokens.split(LENGTHS, 1), labels.split(LENGTHS, 1), strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=0)
    merged = _token_losses(gpt, tokens, labels, (sum(LENGTHS),))
    assert (merged - packed).abs().max() > 1e-2, "the boundaries make no difference here"


def test_a_pack_of_one_document_has_the_losses_of_a_plain_batch(one_rank: Any) -> None:
    _, gpt = _model(one_rank)
    tokens, labels = _pack()
    length = tokens.size(1)
    plain = gpt(tokens, torch.arange(length)[None], None, labels=labels)
    packed = _token_losses(gpt, tokens, labels, (length,))
    torch.testing.assert_close(packed, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_changing_one_document_leaves_the_others_bitwise_the_same(
    one_rank: Any, precision: str
) -> None:
    _, gpt = _model(one_rank, precision)
    tokens, labels = _pack()
    changed = tokens.clone()
    changed[0, 38:108] = (changed[0, 38:108] + 5) % SHAPE["vocab_size"]
    outside = torch.ones(sum(LENGTHS), dtype=torch.bool)
    outside[38:108] = False
    results = []
    for ids in (tokens, changed):
        gpt.zero_grad()
        losses = _token_losses(gpt, ids, labels, LENGTHS)[0]
        losses[outside].sum().backward()
        gradients = [parameter.grad.clone() for parameter in gpt.parameters()]
        results.append((losses.detach()[outside], gradients))
    (before, gradients_before), (after, gradients_after) = results
    assert torch.equal(before, after)
    for mine, other in zip(gradients_before[1:], gradients_after[1:], strict=True):
        assert torch.equal(mine, other)


def test_the_model_computes_the_same_with_every_attention_backend(one_rank: Any) -> None:
    tokens, labels = _pack()
    losses = {}
    for attention in ("auto", "split", "dense"):
        _, gpt = _model(one_rank, attention=attention)
        losses[attention] = _token_losses(gpt, tokens, labels, LENGTHS)
    assert torch.equal(losses["auto"], losses["split"])
    torch.testing.assert_close(losses["dense"], losses["split"], atol=1e-6, rtol=0)


def test_a_backend_that_cannot_train_here_is_refused_when_the_model_is_built(
    one_rank: Any,
) -> None:
    with pytest.raises(DsmError, match="attention backend flex: has no backward on the CPU"):
        _model(one_rank, attention="flex")


def test_fresh_weights_depend_on_the_seed_and_the_name_alone(one_rank: Any) -> None:
    _, first = _model(one_rank)
    _, second = _model(one_rank)
    _, other = _model(one_rank, seed=4)
    for (name, mine), (_, same), (_, differs) in zip(
        *(m.named_parameters() for m in (first, second, other)), strict=True
    ):
        assert torch.equal(mine, same), name
        assert mine.dim() == 1 or not torch.equal(mine, differs), name


def test_counted_parameters_are_those_of_the_model(one_rank: Any) -> None:
    for tied in (False, True):
        config, gpt = _model(one_rank, tie_word_embeddings=tied)
        assert config.num_parameters == sum(p.numel() for p in gpt.parameters())


def test_deepseekmath_7b_has_the_published_number_of_parameters() -> None:
    config = ModelConfig(
        num_layers=30,
        hidden_size=4096,
        num_attention_heads=32,
        num_query_groups=32,
        ffn_hidden_size=11008,
        vocab_size=102400,
    )
    assert round(config.num_parameters / 1e9, 3) == 6.910


LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("tied", "rope_scaling"),
    [(False, None), (True, None), (False, {"type": "linear", "factor": 4.0}), (False, LLAMA3)],
)
def test_exported_model_has_equal_logits_in_transformers_and_comes_back_bit_for_bit(
    one_rank: Any, tmp_path: Path, tied: bool, rope_scaling: dict[str, Any] | None
) -> None:
    from transformers import LlamaForCausalLM

    config, gpt = _model(
        one_rank,
        tie_word_embeddings=tied,
        rotary_base=5000.0,
        layernorm_epsilon=1e-4,
        rope_scaling=rope_scaling,
    )
    save_hf_model([gpt], config, one_rank, tmp_path, bos_id=1, eos_id=2)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    tokens, _ = _pack()
    with torch.no_grad():
        logits = gpt(tokens, torch.arange(tokens.size(1))[None], None)
        expected = theirs(tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    if rope_scaling is not None:
        _, plain = _model(one_rank, rotary_base=5000.0, layernorm_epsilon=1e-4)
        with torch.no_grad():
            unscaled = plain(tokens, torch.arange(tokens.size(1))[None], None)
        assert (unscaled - logits).abs().max() > 1e-2, "the scaling does nothing"

    assert read_hf_config(tmp_path) == config.model_copy(
        update={"max_position_embeddings": config.max_position_embeddings}
    )
    _, back = _model(one_rank, seed=9, tie_word_embeddings=tied)
    load_hf_weights([back], config, one_rank, tmp_path)
    for (name, mine), (_, other) in zip(
        gpt.named_parameters(), back.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name


def test_weights_of_another_shape_are_refused_by_name(one_rank: Any, tmp_path: Path) -> None:
    config, gpt = _model(one_rank)
    save_hf_model([gpt], config, one_rank, tmp_path, bos_id=1, eos_id=2)
    wider, target = _model(one_rank, ffn_hidden_size=128)
    with pytest.raises(DsmError, match=r"mlp\.gate_proj\.weight has shape \(96, 64\)"):
        load_hf_weights([target], wider, one_rank, tmp_path)
    deeper, target = _model(one_rank, num_layers=4)
    with pytest.raises(DsmError, match=r"model\.layers\.3\..* is missing"):
        load_hf_weights([target], deeper, one_rank, tmp_path)
    shallower, target = _model(one_rank, num_layers=2)
    with pytest.raises(DsmError, match="tensors have no place"):
        load_hf_weights([target], shallower, one_rank, tmp_path)


def test_architectures_that_would_be_computed_wrongly_are_refused(
    one_rank: Any, tmp_path: Path
) -> None:
    config, gpt = _model(one_rank)
    save_hf_model([gpt], config, one_rank, tmp_path, bos_id=1, eos_id=2)
    good = read_json(tmp_path / "config.json")
    for change, message in (
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "RoPE scaling of type 'yarn'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "RoPE scaling: .*original_max_position_embeddings",
        ),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "not a Llama"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ):
        write_json(tmp_path / "config.json", {**good, **change})
        with pytest.raises(DsmError, match=message):
            read_hf_config(tmp_path)


def test_a_nan_at_an_unsupervised_position_stays_out_of_the_loss() -> None:
    losses = torch.tensor([[1.0, float("nan"), 3.0]], requires_grad=True)
    total, count = supervised_loss(losses, torch.tensor([[1.0, 0.0, 1.0]]))
    assert (total.item(), count.item()) == (4.0, 2)
    total.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[1.0, 0.0, 1.0]]
