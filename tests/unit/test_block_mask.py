"""Block masks in closed form: equal to torch's create_block_mask, and used by its attention."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dsm_engine import _core
from dsm_engine.errors import DsmError
from dsm_engine.ops.block_mask import (
    BlockMaskLists,
    block_mask,
    block_mask_lists,
    block_mask_reference,
)
from dsm_engine.ops.library import cuda_core, cuda_launcher

BLOCK_SIZES = [1, 7, 16, 64, 128, (64, 128), (128, 32), (7, 16), 300]


def _random_cu_seqlens(generator: torch.Generator, num_tokens: int) -> torch.Tensor:
    num_cuts, padding = (int(torch.randint(0, most, (), generator=generator)) for most in (30, 4))
    cuts = torch.randint(0, num_tokens + 1, (num_cuts,), generator=generator).sort().values
    return torch.tensor([0, *cuts.tolist(), *[num_tokens] * (1 + padding)], dtype=torch.int32)


def _dense_mask(
    cu_seqlens: torch.Tensor, num_tokens: int, causal: bool, window: int | None
) -> torch.Tensor:
    document = torch.searchsorted(cu_seqlens, torch.arange(num_tokens), right=True)
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    mask = document[:, None] == document
    if causal:
        mask &= distance >= 0
    return mask if window is None else mask & (distance.abs() < window)


def _assert_equal_lists(found: BlockMaskLists, expected: BlockMaskLists) -> None:
    """Counts, and of each line the indices that its count covers."""
    for i in range(0, 8, 2):
        assert torch.equal(found[i], expected[i])
        assert found[i + 1].shape == expected[i + 1].shape
        assert found[i + 1].dtype == expected[i + 1].dtype
        covered = torch.arange(found[i + 1].size(-1)) < found[i][..., None]
        assert torch.equal(found[i + 1][covered], expected[i + 1][covered])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_lists_equal_those_of_create_block_mask_on_random_packs(causal, block_size) -> None:
    generator = torch.Generator().manual_seed(11)
    for num_tokens in (1, 63, 64, 65, 128, 200, 257):
        for window in (None, 5, 100):
            cu_seqlens = _random_cu_seqlens(generator, num_tokens)
            dense = _dense_mask(cu_seqlens, num_tokens, causal, window)
            expected = create_block_mask(
                lambda b, h, q, k, dense=dense: dense[q, k],
                None, None, num_tokens, num_tokens, device="cpu", BLOCK_SIZE=block_size,
            )  # fmt: skip
            mask = block_mask(
                cu_seqlens, num_tokens, block_size=block_size, causal=causal, window=window
            )
            lists = block_mask_lists(
                cu_seqlens, num_tokens, block_size=block_size, causal=causal, window=window
            )
            for ours in (lists, [getattr(mask, field) for field in BlockMaskLists._fields]):
                _assert_equal_lists(
                    BlockMaskLists(*ours),
                    BlockMaskLists(*(getattr(expected, f) for f in BlockMaskLists._fields)),
                )
            assert torch.equal(mask.to_dense(), expected.to_dense())
            assert (mask.shape, mask.BLOCK_SIZE) == (expected.shape, expected.BLOCK_SIZE)
            query, key = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)
            assert torch.equal(mask.mask_mod(query, query, query, key), dense)


def test_lists_of_a_pack_written_by_hand() -> None:
    # Blocks of 2, documents of 5 and 3 tokens: rows 0 1 | 2 3 | 4 5 | 6 7.
    lists = block_mask_lists(torch.tensor([0, 5, 8], dtype=torch.int32), 8, block_size=2)
    assert lists.kv_num_blocks.tolist() == [[[1, 1, 3, 2]]]
    assert [row[:n] for row, n in zip(
        lists.kv_indices[0, 0].tolist(), lists.kv_num_blocks[0, 0].tolist(), strict=True
    )] == [[0], [1], [0, 1, 2], [2, 3]]  # fmt: skip
    assert lists.full_kv_num_blocks.tolist() == [[[0, 1, 0, 0]]]
    assert lists.full_kv_indices[0, 0, 1, 0] == 0
    assert lists.q_num_blocks.tolist() == [[[2, 2, 2, 1]]]
    assert lists.full_q_num_blocks.tolist() == [[[1, 0, 0, 0]]]
    assert lists.full_q_indices[0, 0, 0, 0] == 1


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_equals_the_operator(causal) -> None:
    generator = torch.Generator().manual_seed(5)
    for block_size in BLOCK_SIZES:
        cu_seqlens = _random_cu_seqlens(generator, 200)
        options = {"block_size": block_size, "causal": causal, "window": 33}
        _assert_equal_lists(
            block_mask_lists(cu_seqlens, 200, **options),
            block_mask_reference(cu_seqlens, 200, **options),
        )


@pytest.mark.parametrize(
    ("causal", "window"), [(True, None), (False, None), (True, 20), (False, 9)]
)
def test_eager_flex_attention_equals_dense_attention(causal, window) -> None:
    num_tokens = 100
    cu_seqlens = torch.tensor([0, 3, 40, 41, 77, 100, 100], dtype=torch.int32)
    query, key, value = torch.randn(
        3, 1, 2, num_tokens, 16, generator=torch.Generator().manual_seed(1)
    )
    mask = block_mask(cu_seqlens, num_tokens, block_size=32, causal=causal, window=window)
    output = flex_attention(query, key, value, block_mask=mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=_dense_mask(cu_seqlens, num_tokens, causal, window)
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)  # rounding of float32


def test_compiled_attention_is_not_compiled_again_for_the_next_pack() -> None:
    compilations = []

    def count(graph, inputs):
        compilations.append(graph)
        return graph.forward

    def attention(query, mask):
        return flex_attention(query, query, query, block_mask=mask)

    torch._dynamo.reset()
    compiled = torch.compile(attention, backend=count, fullgraph=True)
    query = torch.randn(1, 1, 64, 16)
    for cuts in ([30], [1, 2, 3], [63]):
        cu_seqlens = torch.tensor([0, *cuts, 64], dtype=torch.int32)
        mask = block_mask(cu_seqlens, 64, block_size=16)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, query, query, attn_mask=_dense_mask(cu_seqlens, 64, True, None)
        )
        torch.testing.assert_close(compiled(query, mask), expected, rtol=0, atol=2e-6)
    assert len(compilations) == 1


def test_mask_and_attention_compile_as_one_graph() -> None:
    def attention(query, cu_seqlens):
        mask = block_mask(cu_seqlens, 64, block_size=16)
        return flex_attention(query, query, query, block_mask=mask)

    torch._dynamo.reset()
    query = torch.randn(1, 1, 64, 16)
    cu_seqlens = torch.tensor([0, 30, 64], dtype=torch.int32)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(query, cu_seqlens), attention(query, cu_seqlens), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("with_key_bounds", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_operator_passes_opcheck(causal, with_key_bounds) -> None:
    cu_seqlens = torch.tensor([0, 3, 10, 16, 16], dtype=torch.int32)
    result = torch.library.opcheck(
        torch.ops.dsm.block_mask.default,
        (cu_seqlens, 16, 4, 2, causal, None, with_key_bounds),
        # What stands behind the entries of a list is unspecified, so not the same again.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(result.values()) == {"SUCCESS"}


def _kv_num_blocks(cu_seqlens: torch.Tensor) -> torch.Tensor:
    return block_mask_lists(cu_seqlens, 16, block_size=4).kv_num_blocks


_PACK = torch.tensor([0, 3, 16], dtype=torch.int32)
_NEXT_PACK = torch.tensor([0, 9, 16], dtype=torch.int32)


@pytest.mark.parametrize(
    "trace",
    [
        make_fx(_kv_num_blocks, tracing_mode="real"),
        make_fx(_kv_num_blocks, tracing_mode="real", pre_dispatch=True),
        make_fx(_kv_num_blocks, tracing_mode="symbolic"),
        lambda pack: torch.jit.trace(_kv_num_blocks, (pack,)),
        lambda pack: torch.func.functionalize(_kv_num_blocks),
    ],
)
def test_what_is_traced_on_one_pack_makes_the_lists_of_the_next(trace) -> None:
    assert not torch.equal(_kv_num_blocks(_PACK), _kv_num_blocks(_NEXT_PACK))
    assert torch.equal(trace(_PACK)(_NEXT_PACK), _kv_num_blocks(_NEXT_PACK))


def test_under_a_fake_mode_the_lists_are_fake() -> None:
    expected = block_mask_lists(_PACK, 16, block_size=4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        lists = block_mask_lists(_PACK, 16, block_size=4)
    assert [part.shape for part in lists] == [part.shape for part in expected]
    assert type(lists.kv_indices) is not torch.Tensor


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_under_vmap_the_lists_are_those_of_each_pack() -> None:
    packs = torch.stack([_PACK, _NEXT_PACK])
    expected = torch.stack([_kv_num_blocks(pack) for pack in packs])
    assert torch.equal(torch.func.vmap(_kv_num_blocks)(packs), expected)


@pytest.mark.parametrize("with_key_bounds", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_what_the_dispatchers_operator_returns_is_no_view(causal, with_key_bounds) -> None:
    parts = torch.ops.dsm.block_mask(_PACK, 16, 4, 2, causal, None, with_key_bounds)
    assert all(part._base is None and part.storage_offset() == 0 for part in parts)
    lists = block_mask_lists(_PACK, 16, block_size=(4, 2), causal=causal)
    _assert_equal_lists(BlockMaskLists(*parts[2:]), lists)


def test_block_sizes_of_a_fake_tensor_are_checked() -> None:
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(DsmError, match=r"block_size is 1 to 2\^31 - 1, found 0"),
    ):
        block_mask_lists(_PACK, 16, block_size=0)


def test_a_window_larger_than_any_pack_is_none() -> None:
    lists = block_mask_lists(_PACK, 16, block_size=4, window=1 << 70)
    _assert_equal_lists(lists, block_mask_lists(_PACK, 16, block_size=4))


def test_without_the_cuda_kernels_a_cuda_tensor_is_a_clean_error(monkeypatch) -> None:
    modules = ("block_mask", "context_parallel", "dense_mask", "packed_metadata", "segment_loss")
    for name in modules:
        importlib.import_module(f"dsm_engine.ops.{name}")
        op = "context_parallel_split" if name == "context_parallel" else name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dsm::{op}", "CUDA")
    monkeypatch.setattr("dsm_engine.ops.library.cuda_core", None)
    with pytest.raises(DsmError, match=r"dsm::block_mask: .* without nvcc .* make install where"):
        cuda_launcher("block_mask")


def test_nothing_is_written_outside_the_lines_of_a_list() -> None:
    generator = torch.Generator().manual_seed(2)
    for num_tokens, size in ((64, 1), (65, 7), (100, 100), (30, 4)):
        cu_seqlens = _random_cu_seqlens(generator, num_tokens)
        blocks = -(-num_tokens // size)
        entries = 4 * blocks + 4 * blocks * blocks
        guarded = torch.full((entries + 8,), -7, dtype=torch.int32)
        _core.block_mask(
            cu_seqlens.data_ptr(), len(cu_seqlens), num_tokens, size, size, False, num_tokens,
            False, guarded.data_ptr(),
        )  # fmt: skip
        assert guarded[entries:].tolist() == [-7] * 8
        assert guarded[:entries].max() < blocks * 2  # indices and counts alone


def test_a_pack_without_tokens_has_empty_lists() -> None:
    lists = block_mask_lists(torch.tensor([0, 0], dtype=torch.int32), 0)
    assert [tuple(part.shape) for part in lists] == [(1, 1, 0), (1, 1, 0, 0)] * 4


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], "from 0 to 4, found 2 entries from 0 to 5"),
        ([0, 3, 2, 4], "falls at entry 2, from 3 to 2"),
        ([0], "two or more int32"),
    ],
)
def test_cu_seqlens_that_are_no_pack_are_rejected(cu_seqlens, message) -> None:
    with pytest.raises(DsmError, match=message):
        block_mask_lists(torch.tensor(cu_seqlens, dtype=torch.int32), 4)


@pytest.mark.parametrize(
    ("num_tokens", "options", "message"),
    [
        (4, {"block_size": 0}, "block_size is 1 to 2.31 - 1, found 0"),
        (4, {"block_size": (4, 1 << 31)}, "block_size is 1 to 2.31 - 1"),
        (4, {"block_size": (64,)}, r"a tuple of two for queries and keys, found \(64,\)"),
        (4, {"block_size": (64, 128, 2)}, "a tuple of two for queries and keys"),
        (4, {"block_size": [64, 64]}, "block_size of queries is an int, found list"),
        (4, {"block_size": (64, 128.0)}, "block_size of keys is an int, found float"),
        (4, {"block_size": None}, "block_size of queries is an int, found NoneType"),
        (4, {"window": 0}, "window is 1 or more, or None, found 0"),
        (4, {"window": 2.5}, "window is an int, found float"),
        (torch.tensor(4), {}, "num_tokens is an int, found Tensor"),
        (-1, {}, "found -1"),
        (1 << 20, {"block_size": 1}, "take larger blocks"),
    ],
)
def test_options_that_no_mask_has_are_rejected(num_tokens, options, message) -> None:
    with pytest.raises(DsmError, match=message):
        block_mask(torch.tensor([0, num_tokens], dtype=torch.int32), num_tokens, **options)


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="block_mask: CUDA error"):
        cuda_core.block_mask(0, 3, 16, 4, 4, True, 16, False, 0, 0)
