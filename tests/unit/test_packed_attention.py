"""Block-diagonal attention over packs against a dense mask."""

import pytest
import torch

from dsm_engine.model.attention import dense_attention, packed_attention, plan_attention

LENGTHS = [(7,), (1, 1, 1), (64, 65, 3, 1, 130), (30, 30, 30), (200, 2, 90, 17)]


def _qkv(num_tokens: int, heads: int, groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(num_tokens, n, 16) for n in (heads, groups, groups)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def _cu_seqlens(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_packed_attention_equals_the_dense_mask(
    lengths: tuple[int, ...], heads: int, groups: int
) -> None:
    ours = _qkv(sum(lengths), heads, groups, torch.float32)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    plan = plan_attention(lengths, torch.device("cpu"))
    output = packed_attention(*ours, plan)
    reference = dense_attention(*theirs, _cu_seqlens(lengths))
    torch.testing.assert_close(output, reference, atol=2e-6, rtol=1e-5)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (output * weight).sum().backward()
    (reference * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_documents_output_and_gradients_ignore_its_neighbours_bitwise(
    dtype: torch.dtype,
) -> None:
    lengths = (64, 65, 3, 1, 130)
    plan = plan_attention(lengths, torch.device("cpu"))
    changed_document = slice(64, 129)
    results = []
    for scale in (1.0, -3.0):
        tensors = _qkv(sum(lengths), 4, 2, dtype)
        with torch.no_grad():
            for tensor in tensors:
                tensor[changed_document] *= scale
        output = packed_attention(*tensors, plan)
        output.float().square().sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors)])
    kept = torch.ones(sum(lengths), dtype=torch.bool)
    kept[changed_document] = False
    for before, after in zip(*results, strict=True):
        assert before is not None and after is not None
        assert torch.equal(before[kept], after[kept])
        assert not torch.equal(before[~kept], after[~kept])
