"""FlexAttention's forward on the CPU, compiled by torch for this machine."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from dsm_engine.model.attention import flex
from dsm_engine.model.attention.flex import FLEX
from dsm_engine.model.attention.packed import packed_attention
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.ops.block_mask import block_mask
from tests.attention_packs import (
    HEADS,
    PACKS,
    assert_isolated,
    assert_output_near,
    attend_exactly,
    cu_seqlens_of,
    make_inputs,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DTYPES = [torch.float32, torch.bfloat16]
LONG = (1, 200, 0, 84, 15)  # blocks of 128: whole, in part, and of two documents


@pytest.fixture(autouse=True)
def _forget_what_is_compiled() -> None:
    """torch stops to compile, and goes on eagerly, after eight shapes."""
    torch.compiler.reset()


def _forward(inputs: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    query, key, value = inputs[:3]
    return packed_attention(query, key, value, cu_seqlens_of(lengths), max(lengths), backend="flex")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", [LONG, PACKS["mixed"]])
def test_output_is_exact_within_rounding(
    lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    inputs = make_inputs(sum(lengths), *heads, dtype)
    assert_output_near(_forward(inputs, lengths), attend_exactly(inputs, lengths))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changed", [0, 1, 4])
def test_no_number_of_a_document_depends_on_its_neighbours(
    changed: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(sum(LONG), 4, 2, dtype)
    assert_isolated(lambda pack: [_forward(pack, LONG)], inputs, LONG, changed)


def test_it_is_compiled_once_for_all_packs_of_a_size() -> None:
    inputs = make_inputs(300, 4, 2, torch.float32)
    graphs = counters["stats"]["unique_graphs"] + 1
    _forward(inputs, (100, 200))
    assert counters["stats"]["unique_graphs"] == graphs
    for lengths in ((300,), (1, 99, 200), (150, 0, 150), (3,) * 100):
        assert_output_near(_forward(inputs, lengths), attend_exactly(inputs, lengths))
    assert counters["stats"]["unique_graphs"] == graphs


def test_mask_and_attention_compile_as_one_function() -> None:
    def attention(query: Tensor, cu_seqlens: Tensor) -> Tensor:
        mask = block_mask(cu_seqlens, 300, block_size=128)
        output = flex_attention(query, query, query, block_mask=mask)
        assert isinstance(output, Tensor)
        return output

    query = torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(attention, fullgraph=True)
    for lengths in ((100, 200), (1, 299)):
        cu_seqlens = cu_seqlens_of(lengths)
        torch.testing.assert_close(
            compiled(query, cu_seqlens), attention(query, cu_seqlens), rtol=0, atol=2e-6
        )


def test_the_block_mask_of_a_pack_is_made_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = flex.block_mask
    monkeypatch.setattr(flex, "block_mask", lambda *sizes: made.append(sizes) or original(*sizes))
    query, key, value, _ = make_inputs(300, 4, 2, torch.float32)
    pack = packed_sequences(cu_seqlens_of((100, 200)), (100, 200), 200)
    first = FLEX.attend(query, key, value, pack, None)
    second = FLEX.attend(query, key, value, pack, None)
    assert len(made) == 1
    assert torch.equal(first, second)
