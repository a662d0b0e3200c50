"""The `model` section of a recipe: a dense Llama architecture."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dsm_engine.errors import DsmError
from dsm_engine.recipes import Section, validate_recipe


class RopeScaling(Section):
    """How positions are squeezed for contexts longer than the model was first made for."""

    type: Literal["linear", "llama3"]
    factor: float = Field(gt=0)
    """How many times longer contexts become."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3: frequencies of fewer turns than this over the original context are divided."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3: frequencies of more turns than this are kept."""
    original_max_position_embeddings: int | None = Field(default=None, gt=0)
    """llama3: the original context (tokens)."""

    @model_validator(mode="after")
    def _llama3_is_whole(self) -> Self:
        if self.type == "llama3":
            if self.original_max_position_embeddings is None:
                raise ValueError("type llama3 needs original_max_position_embeddings")
            if self.high_freq_factor <= self.low_freq_factor:
                raise ValueError("high_freq_factor is above low_freq_factor")
        return self


class ModelConfig(Section):
    """Shape of a dense Llama model: RMSNorm, SwiGLU, RoPE, no biases, MHA or GQA."""

    num_layers: int = Field(gt=0)
    """Transformer layers."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_query_groups: int = Field(gt=0)
    """Key and value heads; equal to num_attention_heads for MHA."""
    ffn_hidden_size: int = Field(gt=0)
    """Width of the SwiGLU product."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding; at least the tokenizer's ids, a multiple of TP."""
    max_position_embeddings: int = Field(default=4096, gt=0)
    """Longest document the model is meant for (tokens)."""
    rotary_base: float = 10000.0
    """RoPE base period."""
    rope_scaling: RopeScaling | None = None
    """For contexts longer than the model was first made for; default: none."""
    layernorm_epsilon: float = 1e-5
    """RMSNorm epsilon; DeepSeekMath has 1e-6."""
    tie_word_embeddings: bool = False
    """Whether the output layer is the embedding."""
    init_method_std: float = 0.02
    """Standard deviation of fresh weights; projections back to the residual stream have it
    divided by sqrt(2 * num_layers)."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"RoPE needs an even head size, found {self.head_dim}")
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_query_groups {self.num_query_groups}"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, counted from the shapes."""
        attention = self.hidden_size * self.head_dim * 2
        attention *= self.num_attention_heads + self.num_query_groups
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_layers * layer + embeddings + self.hidden_size

    def differences(self, other: "ModelConfig") -> list[str]:
        """`key: mine, not theirs` for each shape in which two configurations differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [
            f"{key}: {mine[key]}, not {theirs[key]}"
            for key in mine
            if key != "init_method_std" and mine[key] != theirs[key]
        ]


Precision = Literal["fp32", "bf16"]
AttentionBackend = Literal["te", "flash3", "varlen", "flash2", "split", "flex", "dense"]
"""What computes attention over packs: docs/attention.md."""
AttentionChoice = Literal["auto", AttentionBackend]

# Keys of a Hugging Face config.json that would change the computation if they were ignored.
_HF_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


def from_hf_config(config: dict[str, Any], where: str) -> ModelConfig:
    """The shape a Hugging Face `config.json` describes.

    Raises DsmError where it is not a dense Llama this engine can run exactly.
    """
    if not isinstance(config, dict):
        raise DsmError(f"{where}: a model's config.json is a JSON object")
    architectures = config.get("architectures") or []
    if "LlamaForCausalLM" not in architectures and config.get("model_type") != "llama":
        raise DsmError(f"{where}: not a LlamaForCausalLM (architectures {architectures})")
    for key, allowed in _HF_MUST_BE.items():
        if key in config and config[key] not in allowed:
            raise DsmError(f"{where}: {key} = {config[key]!r} is not supported (only {allowed[0]})")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        if head_dim * heads != config["hidden_size"]:
            raise DsmError(f"{where}: head_dim {head_dim} x {heads} heads is not hidden_size")
        return ModelConfig(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            num_attention_heads=heads,
            num_query_groups=config.get("num_key_value_heads") or heads,
            ffn_hidden_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_position_embeddings=config.get("max_position_embeddings", 4096),
            rotary_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rope_scaling=_rope_scaling(rope, where),
            layernorm_epsilon=config.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            init_method_std=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise DsmError(f"{where}: key {error.args[0]!r} is missing") from error


_ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _ROPE_KEYS:
        raise DsmError(
            f"{where}: RoPE scaling of type {kind!r} is not supported (only "
            f"{', '.join(_ROPE_KEYS)})"
        )
    values = {"type": kind, **{key: rope[key] for key in _ROPE_KEYS[kind] if key in rope}}
    return validate_recipe(values, RopeScaling, f"{where}: RoPE scaling")


def to_hf_config(
    model: ModelConfig, *, dtype: str, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """The Hugging Face `config.json` of a model of this shape; `dtype` as transformers names it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_theta": model.rotary_base,
        "rope_scaling": _hf_rope_scaling(model.rope_scaling),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.init_method_std,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": None,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def _hf_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    values = scaling.model_dump(include=set(_ROPE_KEYS[scaling.type]))
    return {"rope_type": scaling.type, **values}
