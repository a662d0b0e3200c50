"""Which attention backend serves a model, why not another, and how the kernels are called.

No CUDA device is here: devices and packages are stood in for, the reasons and calls are ours.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from dsm_engine.errors import DsmError
from dsm_engine.model import gpt
from dsm_engine.model.attention import backend as backend_module
from dsm_engine.model.attention import flex, transformer_engine, varlen
from dsm_engine.model.attention.backend import AttentionCase, ContextParallel, import_error
from dsm_engine.model.attention.choice import BACKENDS, choose_backend, survey
from dsm_engine.model.attention.packed import packed_attention
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.model.config import AttentionBackend, ModelConfig
from dsm_engine.ops.library import cuda_core
from dsm_engine.parallel.config import ParallelConfig
from tests.attention_packs import PACKS, cu_seqlens_of, make_inputs

HOPPER, AMPERE, BLACKWELL, CONSUMER_BLACKWELL = (9, 0), (8, 0), (10, 0), (12, 0)
LENGTHS = PACKS["empty documents and padded entries"]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    def clear() -> None:
        import_error.cache_clear()
        varlen._parameters.cache_clear()
        transformer_engine._module.cache_clear()

    clear()
    yield
    clear()


def case(device: str = "cuda", **changes: Any) -> AttentionCase:
    values: dict[str, Any] = {
        "device": torch.device(device),
        "dtype": torch.bfloat16,
        "num_heads": 32,
        "num_groups": 8,
        "head_dim": 128,
    }
    return AttentionCase(**{**values, **changes})


def reason(name: str, asked: AttentionCase) -> str:
    found = BACKENDS[name].why_not(asked)
    assert found is not None, f"{name} would serve"
    return found


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """An installed module of that name."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CUDA machine with everything installed, of the compute capability given."""

    def make(capability: tuple[int, int], *, cudnn: int = 91_000) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: object())
        operators = SimpleNamespace(runtime_status=lambda device_index: None)
        monkeypatch.setattr(backend_module, "cuda_core", operators)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        stand_in(monkeypatch, "transformer_engine.pytorch", DotProductAttention=object)
        stand_in(monkeypatch, "flash_attn", flash_attn_varlen_func=print)
        stand_in(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=print)

    return make


def remove(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes imports of the package fail as they do where it is not installed."""
    others = importlib.import_module

    def import_module(name: str) -> ModuleType:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return others(name)

    monkeypatch.setattr(backend_module.importlib, "import_module", import_module)
    import_error.cache_clear()


def test_every_name_a_recipe_may_give_is_a_backend_in_the_order_of_auto() -> None:
    assert get_args(AttentionBackend) == tuple(BACKENDS)
    assert all(backend.name == name for name, backend in BACKENDS.items())


def test_on_the_cpu_auto_is_split_and_the_kernels_of_gpus_say_so() -> None:
    assert choose_backend("auto", case("cpu")).name == "split"
    for name in ("te", "flash3", "varlen", "flash2"):
        assert reason(name, case("cpu")) == "needs a CUDA device"


def test_flex_on_the_cpu_serves_where_no_gradient_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reason("flex", case("cpu")) == "has no backward on the CPU"
    assert "16 and more, not 8" in reason("flex", case("cpu", training=False, head_dim=8))
    monkeypatch.setattr(flex.shutil, "which", lambda name: "/usr/bin/c++")
    assert choose_backend("flex", case("cpu", training=False)).name == "flex"
    assert choose_backend("auto", case("cpu", training=False)).name == "split"
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    assert "no C++ compiler" in reason("flex", case("cpu", training=False))


def test_auto_goes_down_its_order_as_packages_are_missing(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(HOPPER)
    taken = [choose_backend("auto", case()).name]
    for package in ("transformer_engine", "flash_attn_interface"):
        remove(monkeypatch, package)
        taken.append(choose_backend("auto", case()).name)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    varlen._parameters.cache_clear()
    taken.append(choose_backend("auto", case()).name)
    remove(monkeypatch, "flash_attn")
    taken.append(choose_backend("auto", case()).name)
    assert taken == ["te", "flash3", "varlen", "flash2", "split"]
    assert reason("te", case()) == "is not installed: pip install 'dsm-engine[gpu]'"
    assert reason("flash2", case()) == "is not installed: pip install flash-attn"
    assert reason("flash3", case()).startswith("is not installed: build hopper/")
    assert "has no such varlen_attn" in reason("varlen", case())


def test_fp32_and_odd_head_sizes_are_not_for_the_kernels_of_half_precision(machine: Any) -> None:
    machine(HOPPER)
    for name in ("te", "flash3", "varlen", "flash2"):
        assert reason(name, case(dtype=torch.float32)) == "takes bf16, not float32"
        for head_dim in (100, 264):
            assert f"not {head_dim}" in reason(name, case(head_dim=head_dim))
    assert choose_backend("auto", case(dtype=torch.float32)).name == "split"


def test_on_other_generations_auto_takes_what_their_kernels_are_for(machine: Any) -> None:
    machine(AMPERE)
    assert choose_backend("auto", case()).name == "varlen"
    for name in ("te", "flash3"):
        assert reason(name, case()) == "needs compute capability 9.0, the device has 8.0"
    machine(BLACKWELL)
    assert choose_backend("auto", case()).name == "te"
    assert "written for Hopper" in reason("flash3", case())
    machine((7, 5))
    assert choose_backend("auto", case()).name == "split"
    assert "needs compute capability 8.0" in reason("flex", case())


def test_transformer_engine_is_refused_where_it_would_leave_cudnn(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(HOPPER, cudnn=90_501)
    assert reason("te", case()) == "needs cuDNN 9.6, found 9.5"
    machine(HOPPER, cudnn=90_600)
    assert BACKENDS["te"].why_not(case()) is None
    machine(CONSUMER_BLACKWELL)
    assert "for compute capability 12.0" in reason("te", case())
    machine(BLACKWELL)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "no deterministic backward" in reason("te", case())
    assert BACKENDS["te"].why_not(case(training=False)) is None


def test_transformer_engine_is_refused_where_the_environment_forbids_cudnn(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(HOPPER)
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    assert reason("te", case()) == "NVTE_FUSED_ATTN=0 is set: it forbids cuDNN"
    assert choose_backend("auto", case()).name == "flash3"


@pytest.mark.parametrize(
    ("backend", "megatrons"), [("split", AttnBackend.auto), ("te", AttnBackend.fused)]
)
@pytest.mark.parametrize("value", [None, "0", "1"])
def test_a_model_is_built_whatever_is_set_for_transformer_engine_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
    one_rank: Any,
    backend: str,
    megatrons: AttnBackend,
    value: str | None,
) -> None:
    monkeypatch.setattr(gpt, "choose_backend", lambda name, case: BACKENDS[name])
    for name in transformer_engine.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    model = ModelConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        num_query_groups=1,
        ffn_hidden_size=32,
        vocab_size=32,
    )
    built = gpt.build_gpt(model, ParallelConfig(), "fp32", one_rank, attention=backend)
    assert built.config.attention_backend is megatrons
    assert {os.environ.get(name) for name in transformer_engine.ENVIRONMENT} == {value}


@pytest.mark.parametrize(
    ("capability", "head_dim", "training", "cudnn", "why_not"),
    [
        (BLACKWELL, 128, True, 90_600, "needs cuDNN 9.7, found 9.6"),
        (BLACKWELL, 128, True, 90_700, None),
        (
            BLACKWELL,
            256,
            True,
            91_000,
            "trains head sizes above 128 on compute capability 9.0 alone",
        ),
        (BLACKWELL, 256, False, 90_800, "needs cuDNN 9.9, found 9.8"),
        (BLACKWELL, 256, False, 90_900, None),
        (HOPPER, 256, True, 90_600, None),
    ],
)
def test_what_transformer_engine_wants_of_cudnn_depends_on_the_device_and_the_head(
    machine: Any,
    capability: tuple[int, int],
    head_dim: int,
    training: bool,
    cudnn: int,
    why_not: str | None,
) -> None:
    machine(capability, cudnn=cudnn)
    assert BACKENDS["te"].why_not(case(head_dim=head_dim, training=training)) == why_not


def test_a_package_that_raises_what_it_likes_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, machine: Any, tmp_path: Path
) -> None:
    machine(HOPPER)
    for name, error in (
        ("transformer_engine", "RuntimeError('no CUDA found\\nsecond line')"),
        ("flash_attn", "OSError('libcudart.so.13')"),
        ("flash_attn_interface", "ModuleNotFoundError('No module', name='einops')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise {error}\n")
        for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reason("te", case()) == (
        "transformer_engine.pytorch does not load: RuntimeError: no CUDA found"
    )
    assert reason("flash2", case()) == "flash_attn does not load: OSError: libcudart.so.13"
    assert reason("flash3", case()).endswith("does not load: ModuleNotFoundError: No module")


def test_a_package_without_the_function_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(HOPPER)
    stand_in(monkeypatch, "flash_attn")
    assert reason("flash2", case()) == "flash_attn has no flash_attn_varlen_func"


def test_varlen_of_a_torch_without_gqa_serves_mha_alone(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(AMPERE)
    monkeypatch.setattr(varlen, "_parameters", lambda: frozenset({"scale", "window_size"}))
    assert "as many key heads as query heads" in reason("varlen", case())
    assert BACKENDS["varlen"].why_not(case(num_groups=32)) is None
    assert choose_backend("auto", case()).name == "flash2"


def test_masks_on_cuda_want_the_cuda_operators_and_flex_triton(
    monkeypatch: pytest.MonkeyPatch, machine: Any
) -> None:
    machine(HOPPER)
    assert BACKENDS["flex"].why_not(case()) is None
    monkeypatch.setattr(backend_module, "cuda_core", None)
    for name in ("flex", "dense"):
        assert "needs the CUDA operators" in reason(name, case())
    operators = SimpleNamespace(runtime_status=lambda idx: f"device {idx} has an old driver")
    monkeypatch.setattr(backend_module, "cuda_core", operators)
    for device, idx in (("cuda", 0), ("cuda:1", 1)):
        assert reason("dense", case(device)) == (
            f"needs the CUDA operators, which do not run here: device {idx} has an old driver"
        )
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in reason("flex", case())


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_the_built_operators_say_that_there_is_no_driver() -> None:
    assert cuda_core is not None
    assert cuda_core.runtime_status(0) == "there is no NVIDIA driver"


def test_a_backend_that_cannot_serve_is_refused_with_the_reason_and_those_that_can() -> None:
    with pytest.raises(DsmError) as error:
        choose_backend("te", case("cpu"))
    assert str(error.value) == (
        "attention backend te: needs a CUDA device; auto takes split, and there are split, dense"
    )
    with pytest.raises(DsmError, match="'flesh': there are auto, te, flash3, varlen, flash2"):
        choose_backend("flesh", case("cpu"))


def test_the_survey_is_plain_values() -> None:
    found = survey()
    assert json.loads(json.dumps(found)) == found
    assert list(found["backends"]) == list(BACKENDS)
    assert found["auto"] == {"bf16": "split", "fp32": "split"}


class Kernel:
    """In place of a package's kernel: attends as its arguments say, and keeps them."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scale: float | None
    ) -> Tensor:
        return packed_attention(query, key, value, ends, 0, scale=scale, backend="dense")


def served(name: str, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """What a backend makes of a pack through its stand-in, and what `dense` does."""
    query, key, value, _ = make_inputs(sum(LENGTHS), 4, 2, torch.bfloat16)
    cu_seqlens = cu_seqlens_of(LENGTHS)
    pack = packed_sequences(cu_seqlens, LENGTHS, max(LENGTHS))
    expected = packed_attention(query, key, value, cu_seqlens, 0, scale=scale, backend="dense")
    return BACKENDS[name].attend(query, key, value, pack, scale), expected


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize(
    ("name", "module"), [("flash2", "flash_attn"), ("flash3", "flash_attn_interface")]
)
def test_flash_attention_is_called_causally_with_the_packs_documents(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, beta: bool, deterministic: bool
) -> None:
    kernel = Kernel()

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Any:
        kernel.arguments = arguments
        output = kernel.attend(q, k, v, arguments["cu_seqlens_k"], arguments["softmax_scale"])
        return (output, None) if beta else output

    stand_in(monkeypatch, module, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    found, expected = served(name, scale=0.1)
    assert torch.equal(found, expected)
    arguments = kernel.arguments
    assert arguments["causal"] is True and arguments["deterministic"] is deterministic
    assert arguments["cu_seqlens_q"] is arguments["cu_seqlens_k"]
    assert arguments["max_seqlen_q"] == arguments["max_seqlen_k"] == max(LENGTHS)
    assert arguments.get("num_splits") == (1 if name == "flash3" else None)


@pytest.mark.parametrize("newer", [False, True])
def test_varlen_attn_is_called_causally_and_never_splits_keys(
    monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    kernel = Kernel()

    def attend(tensors: tuple[Tensor, ...], bounds: tuple[Any, ...], **options: Any) -> Tensor:
        kernel.arguments = options
        assert bounds[0] is bounds[1] and bounds[2] == bounds[3] == max(LENGTHS)
        query, key, value = tensors
        return kernel.attend(query, key, value, bounds[0], options["scale"])

    def of_torch_2_11(
        *inputs: Any, scale: float | None, window_size: tuple[int, int], enable_gqa: bool
    ) -> Tensor:
        assert enable_gqa
        return attend(inputs[:3], inputs[3:], scale=scale, window_size=window_size)

    def of_torch_2_12(*inputs: Any, num_splits: int | None = None, **options: Any) -> Tensor:
        assert num_splits == 1
        return of_torch_2_11(*inputs, **options)

    function = of_torch_2_12 if newer else of_torch_2_11
    monkeypatch.setattr(varlen, "_function", lambda: function)
    found, expected = served("varlen", scale=0.1)
    assert torch.equal(found, expected)
    assert kernel.arguments["window_size"] == (-1, 0)


def test_transformer_engine_is_called_with_thd_and_one_module_for_all_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel()
    for variable in transformer_engine.ENVIRONMENT:
        monkeypatch.setenv(variable, "1")
    made = []

    class DotProductAttention:
        def __init__(self, num_attention_heads: int, kv_channels: int, **options: Any) -> None:
            made.append((num_attention_heads, kv_channels, options))
            variables = {name: os.environ.get(name) for name in transformer_engine.ENVIRONMENT}
            assert variables == transformer_engine.ENVIRONMENT, "or TE would leave cuDNN"
            self.scale = options["softmax_scale"]

        def __call__(self, query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
            kernel.arguments = arguments
            output = kernel.attend(query, key, value, arguments["cu_seqlens_kv"], self.scale)
            return output.flatten(1)  # as TE: [T, heads * head_dim]

    stand_in(monkeypatch, "transformer_engine.pytorch", DotProductAttention=DotProductAttention)
    for _ in range(2):
        found, expected = served("te", scale=0.1)
        assert torch.equal(found, expected)
    options = {
        "num_gqa_groups": 2,
        "attention_dropout": 0.0,
        "qkv_format": "thd",
        "attn_mask_type": "padding_causal",
        "softmax_scale": 0.1,
    }
    assert made == [(4, 16, options)]
    assert kernel.arguments["cu_seqlens_q"] is kernel.arguments["cu_seqlens_kv"]
    num_tokens = sum(LENGTHS)
    assert kernel.arguments["max_seqlen_q"] == kernel.arguments["max_seqlen_kv"] == num_tokens
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    served("te", scale=0.1)
    assert len(made) == 2, "TE reads the setting when the module is made"


def test_transformer_engine_under_context_parallelism_gets_the_group_and_the_whole_packs_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in transformer_engine.ENVIRONMENT:
        monkeypatch.setenv(variable, "1")
    groups: list[tuple[Any, ...]] = []
    calls: list[dict[str, Any]] = []

    class DotProductAttention:
        def __init__(self, *sizes: int, **options: Any) -> None:
            pass

        def set_context_parallel_group(self, *arguments: Any) -> None:
            groups.append(arguments)

        def __call__(self, query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
            calls.append(arguments)
            return query.flatten(1)

    stand_in(monkeypatch, "transformer_engine.pytorch", DotProductAttention=DotProductAttention)

    class Group:
        def size(self) -> int:
            return 2

    group: Any = Group()
    monkeypatch.setattr(
        transformer_engine.dist, "get_process_group_ranks", lambda asked: [4, 6] * (asked is group)
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    lengths = (8, 16, 8)
    pack = packed_sequences(cu_seqlens_of(lengths), lengths, max(lengths))
    share, key, value, _ = make_inputs(sum(lengths) // 2, 4, 2, torch.bfloat16)
    attend_share = BACKENDS["te"].attend_share
    assert attend_share is not None
    ranks = ContextParallel(group=group, rank=1, size=2)
    assert attend_share(share, key, value, pack, 0.1, ranks).shape == share.shape
    assert groups == [(group, [4, 6], "a stream", "p2p")]
    (arguments,) = calls
    ends = pack.cu_seqlens_q
    assert arguments["cu_seqlens_q"] is arguments["cu_seqlens_q_padded"] is ends
    assert arguments["cu_seqlens_kv"] is arguments["cu_seqlens_kv_padded"] is ends
    assert arguments["pad_between_seqs"] is False
    assert arguments["max_seqlen_q"] == arguments["max_seqlen_kv"] == sum(lengths)


def test_backends_without_context_parallelism_say_so() -> None:
    asked = replace(case("cpu"), cp_size=2)
    assert choose_backend("auto", asked).name == "split"
    for name in ("dense", "flex"):
        with pytest.raises(DsmError, match=f"{name}: does not serve context parallelism; .*split"):
            choose_backend(name, asked)
