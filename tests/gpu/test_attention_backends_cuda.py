"""The attention backends on CUDA: exact within rounding, isolated, deterministic, never waiting."""

from collections.abc import Iterator

import pytest
import torch

from dsm_engine.model.attention.backend import AttentionCase
from dsm_engine.model.attention.choice import BACKENDS, choose_backend
from dsm_engine.model.attention.packed import packed_attention
from tests.attention_packs import (
    HEADS,
    MANY_DOCUMENTS,
    PACKS,
    assert_isolated,
    assert_near,
    attend,
    attend_exactly,
    cu_seqlens_of,
    make_inputs,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DTYPES = [torch.float32, torch.bfloat16]
HEAD_DIM = 64
LONG = (1, 700, 0, 129, 64, 1154)  # 2,048 tokens: blocks of every kernel, whole and in part


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """fp32 products are of fp32, and what is compiled for one test is not counted in another."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.compiler.reset()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.use_deterministic_algorithms` wants it; `_settings` undoes it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def _skip_unless_it_serves(backend: str, heads: tuple[int, int], dtype: torch.dtype) -> None:
    case = AttentionCase(
        device=torch.device("cuda", torch.cuda.current_device()),
        dtype=dtype,
        num_heads=heads[0],
        num_groups=heads[1],
        head_dim=HEAD_DIM,
    )
    reason = BACKENDS[backend].why_not(case)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def _inputs(
    lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype
) -> list[torch.Tensor]:
    return make_inputs(sum(lengths), *heads, dtype, head_dim=HEAD_DIM, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    "lengths", [*PACKS.values(), MANY_DOCUMENTS, LONG], ids=[*PACKS, "600 documents", "long"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients_are_exact_within_rounding(
    backend: str, lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    _skip_unless_it_serves(backend, heads, dtype)
    inputs = _inputs(lengths, heads, dtype)
    assert_near(attend(backend, inputs, lengths), attend_exactly(inputs, lengths))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("changed", [1, 3, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_number_of_a_document_depends_on_its_neighbours(
    backend: str, changed: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    _skip_unless_it_serves(backend, heads, dtype)
    inputs = _inputs(LONG, heads, dtype)
    assert_isolated(
        lambda pack: [tensor.cpu() for tensor in attend(backend, pack, LONG).tensors],
        inputs,
        LONG,
        changed,
    )


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_pack_gives_the_same_bits(
    backend: str, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    _skip_unless_it_serves(backend, heads, dtype)
    inputs = _inputs(LONG, heads, dtype)
    first = attend(backend, inputs, LONG)
    for _ in range(5):
        again = attend(backend, inputs, LONG)
        for mine, other in zip(first.tensors, again.tensors, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "split"])
def test_nothing_waits_for_the_device(backend: str, dtype: torch.dtype) -> None:
    _skip_unless_it_serves(backend, (4, 4), dtype)
    query, key, value, upstream = _inputs(LONG, (4, 4), dtype)
    query.requires_grad_()
    cu_seqlens = cu_seqlens_of(LONG, "cuda")

    def forward_and_backward() -> None:
        output = packed_attention(query, key, value, cu_seqlens, max(LONG), backend=backend)
        output.backward(upstream)

    forward_and_backward()  # what is compiled or built at the first call may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_auto_chooses_a_backend_that_serves(heads: tuple[int, int]) -> None:
    inputs = _inputs(LONG, heads, torch.bfloat16)
    found = attend("auto", inputs, LONG)
    case = AttentionCase(
        device=inputs[0].device,
        dtype=torch.bfloat16,
        num_heads=heads[0],
        num_groups=heads[1],
        head_dim=HEAD_DIM,
    )
    chosen = attend(choose_backend("auto", case).name, inputs, LONG)
    assert torch.equal(found.output, chosen.output)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_the_cpu_within_rounding(dtype: torch.dtype) -> None:
    inputs = _inputs(LONG, (4, 2), dtype)
    on_the_cpu = attend("split", [tensor.cpu() for tensor in inputs], LONG)
    exact = attend_exactly(inputs, LONG)
    assert_near(on_the_cpu, exact)
    assert_near(attend("auto", inputs, LONG), exact)
