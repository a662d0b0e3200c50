"""Packs for the tests of attention, what a backend makes of them, and how far it may be off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsm_engine.model.attention.packed import packed_attention

Lengths = tuple[int, ...]

PACKS: dict[str, Lengths] = {
    "one document": (70,),
    "one token": (1,),
    "one-token documents": (1, 1, 1, 1),
    "equal documents": (30, 30, 30),
    "mixed": (64, 65, 3, 1, 130),
    "empty documents and padded entries": (0, 5, 0, 40, 1, 0, 0, 0),
}
MANY_DOCUMENTS = tuple(1 + idx % 2 for idx in range(600))
HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (6, 1)}

# In eps of the dtype, of the largest output or gradient. Kernels round the probabilities and the
# output to the dtype, and backward the scores' gradient too, each by half an eps at most; what they
# sum, they sum in fp32. The rest is room for those sums and the exponentials.
_FORWARD_EPS, _BACKWARD_EPS = 4, 8


@dataclass(frozen=True, kw_only=True)
class Attended:
    """Output and gradients of a pack."""

    output: Tensor  # [T, heads, head_dim]
    gradients: tuple[Tensor, ...]  # of query, key and value

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it; each has the tokens of the pack in its first dimension."""
        return (self.output, *self.gradients)


def cu_seqlens_of(lengths: Sequence[int], device: str = "cpu") -> Tensor:
    """int32 [documents + 1]; empty documents repeat an entry."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def make_inputs(
    num_tokens: int,
    heads: int,
    groups: int,
    dtype: torch.dtype,
    *,
    head_dim: int = 16,
    device: str = "cpu",
) -> list[Tensor]:
    """query, key, value and the gradient of the output, the same numbers on every device."""
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(num_tokens, n, head_dim) for n in (heads, groups, groups, heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def attend(
    backend: str,
    inputs: Sequence[Tensor],
    lengths: Sequence[int],
    *,
    scale: float | None = None,
) -> Attended:
    """What a backend makes of `make_inputs`."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs[:3]]
    cu_seqlens = cu_seqlens_of(lengths, str(inputs[0].device))
    query, key, value = leaves
    output = packed_attention(
        query, key, value, cu_seqlens, max(lengths), backend=backend, scale=scale
    )
    gradients = torch.autograd.grad(output, leaves, inputs[3])
    return Attended(output=output.detach(), gradients=gradients)


def attend_exactly(
    inputs: Sequence[Tensor], lengths: Sequence[int], *, scale: float | None = None
) -> Attended:
    """Document by document, the softmax written out, in double precision."""
    leaves = [tensor.detach().double().cpu().requires_grad_() for tensor in inputs[:3]]
    repeats = leaves[0].size(1) // leaves[1].size(1)
    factor = leaves[0].size(2) ** -0.5 if scale is None else scale
    outputs = []
    for query, *key_value in zip(*(leaf.split(list(lengths)) for leaf in leaves), strict=True):
        key, value = (tensor.repeat_interleave(repeats, 1) for tensor in key_value)
        scores = torch.einsum("qhd,khd->hqk", query, key) * factor
        after = torch.ones(len(query), len(query)).triu(1).bool()
        probabilities = scores.masked_fill(after, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", probabilities, value))
    output = torch.cat(outputs)
    gradients = torch.autograd.grad(output, leaves, inputs[3].double().cpu())
    return Attended(output=output.detach(), gradients=gradients)


def assert_near(found: Attended, exact: Attended) -> None:
    """Every value within the dtype's rounding of the exact one."""
    assert_output_near(found.output, exact)
    eps = torch.finfo(found.output.dtype).eps
    assert _distance(found.gradients, exact.gradients) <= _BACKWARD_EPS * eps


def assert_output_near(found: Tensor, exact: Attended) -> None:
    """The output alone, of what has no backward."""
    eps = torch.finfo(found.dtype).eps
    assert _distance((found,), (exact.output,)) <= _FORWARD_EPS * eps


def _distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error over the largest exact value."""
    errors = [
        (mine.double().cpu() - other).abs().max().item()
        for mine, other in zip(found, exact, strict=True)
    ]
    return max(errors) / max(other.abs().max().item() for other in exact)


def assert_isolated(
    attend_pack: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    lengths: Sequence[int],
    changed: int,
) -> None:
    """Another document of the same length in place of `changed`: all others' numbers are bitwise
    the same, and its own are not."""
    begin = sum(lengths[:changed])
    inside = slice(begin, begin + lengths[changed])
    outside = torch.ones(sum(lengths), dtype=torch.bool)
    outside[inside] = False
    others = [tensor.clone() for tensor in inputs]
    for tensor in others:
        tensor[inside] = tensor[inside].flip(-1) * -30 + 1
    for before, after in zip(attend_pack(inputs), attend_pack(others), strict=True):
        assert torch.equal(before[outside], after[outside])
        assert not torch.equal(before[inside], after[inside])
