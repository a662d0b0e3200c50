"""Block-diagonal attention over packs: the backends that train on a CPU."""

import dataclasses
from typing import Any

import pytest
import torch

from dsm_engine.errors import DsmError
from dsm_engine.model.attention import dense
from dsm_engine.model.attention.choice import BACKENDS
from dsm_engine.model.attention.packed import packed_attention
from dsm_engine.model.attention.packs import packed_sequences
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

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_output_and_gradients_are_exact_within_rounding(
    backend: str, lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    inputs = make_inputs(sum(lengths), *heads, dtype)
    assert_near(attend(backend, inputs, lengths), attend_exactly(inputs, lengths))


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_packs_of_many_documents_are_exact_within_rounding(backend: str) -> None:
    inputs = make_inputs(sum(MANY_DOCUMENTS), 2, 1, torch.bfloat16)
    assert_near(attend(backend, inputs, MANY_DOCUMENTS), attend_exactly(inputs, MANY_DOCUMENTS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changed", [0, 1, 4])
@pytest.mark.parametrize("backend", ["split", "dense"])
def test_no_number_of_a_document_depends_on_its_neighbours(
    backend: str, changed: int, dtype: torch.dtype
) -> None:
    lengths = PACKS["mixed"]
    inputs = make_inputs(sum(lengths), 4, 2, dtype)
    assert_isolated(lambda pack: attend(backend, pack, lengths).tensors, inputs, lengths, changed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_split_computes_a_document_as_if_it_were_alone(
    heads: tuple[int, int], dtype: torch.dtype
) -> None:
    lengths = PACKS["mixed"]
    inputs = make_inputs(sum(lengths), *heads, dtype)
    packed = attend("split", inputs, lengths)
    for document, length in enumerate(lengths):
        begin = sum(lengths[:document])
        inside = slice(begin, begin + length)
        alone = attend("split", [tensor[inside] for tensor in inputs], [length])
        for mine, other in zip(packed.tensors, alone.tensors, strict=True):
            assert torch.equal(mine[inside], other)


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_scores_are_multiplied_by_the_scale(backend: str) -> None:
    lengths = PACKS["mixed"]
    inputs = make_inputs(sum(lengths), 4, 2, torch.float32)
    found = attend(backend, inputs, lengths, scale=0.1)
    assert_near(found, attend_exactly(inputs, lengths, scale=0.1))
    assert not torch.allclose(found.output, attend(backend, inputs, lengths).output, atol=1e-2)


def test_auto_is_split_on_the_cpu_whether_lengths_are_given_or_not() -> None:
    lengths = PACKS["empty documents and padded entries"]
    query, key, value, _ = make_inputs(sum(lengths), 4, 2, torch.float32)
    cu_seqlens = cu_seqlens_of(lengths)
    split = packed_attention(query, key, value, cu_seqlens, 40, backend="split")
    assert torch.equal(split, packed_attention(query, key, value, cu_seqlens, 40))
    given = packed_attention(query, key, value, cu_seqlens, 40, lengths=lengths)
    assert torch.equal(split, given)


def test_views_of_one_projection_are_taken_as_they_are() -> None:
    mixed = torch.randn(20, 4, 3 * 16, generator=torch.Generator().manual_seed(0))
    views = mixed.split(16, dim=-1)
    cu_seqlens = cu_seqlens_of((5, 15))
    copies = [view.contiguous() for view in views]
    from_views, from_copies = (
        packed_attention(query, key, value, cu_seqlens, 15) for query, key, value in (views, copies)
    )
    assert torch.equal(from_views, from_copies)


def test_what_a_backend_makes_of_a_pack_serves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = dense.dense_mask
    monkeypatch.setattr(dense, "dense_mask", lambda *sizes: made.append(sizes) or original(*sizes))
    pack = packed_sequences(cu_seqlens_of((5, 15)), (5, 15), 15)
    query, key, value, _ = make_inputs(20, 4, 2, torch.float32)
    first, second = (BACKENDS["dense"].attend(query, key, value, pack, None) for _ in range(2))
    assert torch.equal(first, second)
    assert len(made) == 1


@pytest.mark.parametrize("replaced", ["in the pack", "in a copy of the pack"])
def test_a_mask_is_made_anew_for_other_documents(replaced: str) -> None:
    query, key, value, _ = make_inputs(20, 4, 2, torch.float32)
    pack = packed_sequences(cu_seqlens_of((5, 15)), (5, 15), 15)
    attend_dense = BACKENDS["dense"].attend
    before = attend_dense(query, key, value, pack, None)
    others = cu_seqlens_of((12, 8))
    if replaced == "in the pack":
        pack.cu_seqlens_q = others
    else:
        pack = dataclasses.replace(pack, cu_seqlens_q=others)
    found = attend_dense(query, key, value, pack, None)
    expected = packed_attention(query, key, value, others, 12, backend="dense")
    assert torch.equal(found, expected) and not torch.equal(found, before)


def test_a_mask_of_another_number_of_tokens_is_not_used() -> None:
    query, key, value, _ = make_inputs(20, 4, 2, torch.float32)
    pack = packed_sequences(cu_seqlens_of((5, 15)), (5, 15), 15)
    BACKENDS["dense"].attend(query, key, value, pack, None)
    with pytest.raises(DsmError, match="from 0 to 12, found 3 entries from 0 to 20"):
        BACKENDS["dense"].attend(query[:12], key[:12], value[:12], pack, None)


@pytest.mark.parametrize("name", ["mask", "block_mask"])
def test_a_copy_of_a_pack_keeps_no_mask(name: str) -> None:
    pack = packed_sequences(cu_seqlens_of((5, 15)), (5, 15), 15)
    assert getattr(dataclasses.replace(pack), name) is not getattr(pack, name)


def _refused(
    message: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **options: Any,
) -> None:
    with pytest.raises(DsmError, match=message):
        packed_attention(query, key, value, cu_seqlens, 15, **options)


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    query, key, value, _ = make_inputs(20, 4, 2, torch.float32)
    cu_seqlens = cu_seqlens_of((5, 15))
    shapes = r"key and value are \[T, groups, head_dim\]"
    _refused(shapes, query[:, :3], key, value, cu_seqlens)
    _refused(shapes, query[:19], key, value, cu_seqlens)
    _refused(shapes, query, key, value[..., :8], cu_seqlens)
    _refused(shapes, query[None], key[None], value[None], cu_seqlens)
    _refused(shapes, query[:0], key[:0], value[:0], torch.tensor([0, 0], dtype=torch.int32))
    _refused("of one dtype", query, key.bfloat16(), value, cu_seqlens)
    _refused("one row of two or more int32", query, key, value, cu_seqlens.long())
    _refused("one row of two or more int32", query, key, value, cu_seqlens[None])


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_documents_that_do_not_fill_the_pack_are_refused(backend: str) -> None:
    query, key, value, _ = make_inputs(20, 4, 2, torch.float32)
    for bounds in ([0, 5, 19], [0, 5, 21], [0, 12, 8, 20]):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
        _refused("one behind the other", query, key, value, cu_seqlens, backend=backend)
    shifted = torch.tensor([2, 5, 22], dtype=torch.int32)
    _refused("begins with 0, found 2", query, key, value, shifted, backend=backend)
    cu_seqlens = cu_seqlens_of((5, 15))
    _refused("found 18 tokens", query, key, value, cu_seqlens, lengths=(3, 15), backend=backend)
