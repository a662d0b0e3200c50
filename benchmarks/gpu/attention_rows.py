"""Attention over packs, forward and backward, by backend: checked against the dense mask, timed.

What a pack needs but once (plans, masks, the BlockMask) is made before and not timed: a model
makes it at its first layer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from attention_flops import attention_flops
from cases import Case
from device_timing import Call, Timer
from lengths import pack_lengths
from operator_rows import make_cu_seqlens
from result_file import Row
from torch import Tensor

_MOST_TOKENS_OF_DENSE = 16_384  # 16 times the work at four times the tokens, and 4 GB of mask
_FORWARD_TOLERANCE, _BACKWARD_TOLERANCE = 1e-2, 2e-2  # bf16 has 8 bits: 4e-3 a rounding
CHECKS_NEED_S = {"attention_flex": 120}  # compiled forward and backward, for two shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A pack and the heads over it."""

    tokens: int
    mean: int
    """Tokens of a document, on average."""
    heads: int = 32
    groups: int = 32
    head_dim: int = 128

    @property
    def name(self) -> str:
        gqa = "" if self.groups == self.heads else f"_gqa{self.groups}"
        return f"attention_{self.tokens}_mean{self.mean}{gqa}"

    def lengths(self) -> tuple[int, ...]:
        return tuple(pack_lengths(self.tokens, self.mean))


SHAPES = tuple(
    Shape(tokens=tokens, mean=mean, groups=groups)
    for tokens in (4_096, 16_384, 65_536)
    for mean, groups in ((350, 32), (2_000, 32), (350, 8))
)
# Timed too: flex is compiled for each shape, which takes longer than to run it.
_CHECKED_SHAPES = (Shape(tokens=4_096, mean=350), Shape(tokens=4_096, mean=350, groups=8))


def attention_checks(
    device: torch.device, shapes: Iterable[Shape] = _CHECKED_SHAPES
) -> Iterable[tuple[str, Callable[[], None]]]:
    """A check of each backend, by the subject's name."""
    from dsm_engine.model.attention.choice import BACKENDS

    for backend in BACKENDS:
        yield f"attention_{backend}", partial(_check, backend, device, tuple(shapes))


def attention_cases(
    timer: Timer, device: torch.device, shapes: Iterable[Shape] = SHAPES
) -> list[Case]:
    """A case for each shape and backend, in the order of the shapes."""
    from dsm_engine.model.attention.choice import BACKENDS

    return [
        Case(
            name=f"{shape.name}_{backend}",
            n=shape.tokens,
            subject=f"attention_{backend}",
            needs_s=60 if backend == "flex" else 10,  # flex is compiled for each shape
            run=partial(_row, shape, backend, timer, device),
        )
        for shape in shapes
        for backend in BACKENDS
        if backend != "dense" or shape.tokens <= _MOST_TOKENS_OF_DENSE
    ]


def _row(shape: Shape, backend: str, timer: Timer, device: torch.device) -> Row:
    value = timer.time_large(_forward_backward(shape, backend, device))
    lengths = shape.lengths()
    forward, backward = attention_flops(lengths, shape.heads, shape.head_dim)
    return Row(
        name=f"{shape.name}_{backend}",
        n=shape.tokens,
        value=value,
        details={
            "shape": shape.name,
            "tflops_per_s": (forward + backward) / value.median / 1e12,
            "flops": forward + backward,
            "documents": len(lengths),
            "longest": max(lengths),
        },
    )


def _forward_backward(shape: Shape, backend: str, device: torch.device) -> Call:
    inputs, upstream = _inputs(shape, device)
    attend = _attention(shape, backend, device, torch.bfloat16)

    def call() -> tuple[Tensor, ...]:
        output = attend(*inputs)
        return output, *torch.autograd.grad(output, inputs, upstream)

    return call


def _attention(
    shape: Shape, backend: str, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A backend over one pack. Raises DsmError where it cannot serve."""
    from dsm_engine.model.attention.backend import AttentionCase
    from dsm_engine.model.attention.choice import choose_backend
    from dsm_engine.model.attention.packs import packed_sequences

    case = AttentionCase(
        device=device,
        dtype=dtype,
        num_heads=shape.heads,
        num_groups=shape.groups,
        head_dim=shape.head_dim,
    )
    chosen = choose_backend(backend, case)
    lengths = shape.lengths()
    pack = packed_sequences(make_cu_seqlens(lengths, device), lengths, max(lengths))
    return lambda query, key, value: chosen.attend(query, key, value, pack, None)


def _inputs(shape: Shape, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Query, key and value, and the gradient of the output; bf16, drawn anew for each use."""
    query, key, value, upstream = (
        torch.randn(shape.tokens, heads, shape.head_dim, dtype=torch.bfloat16, device=device)
        for heads in (shape.heads, shape.groups, shape.groups, shape.heads)
    )
    return tuple(tensor.requires_grad_() for tensor in (query, key, value)), upstream


def _check(backend: str, device: torch.device, shapes: Iterable[Shape]) -> None:
    """Output and gradients within bf16's rounding of the dense mask's in fp32.

    A backend that cannot serve passes: its rows say why.
    """
    from dsm_engine.errors import DsmError

    for shape in shapes:
        try:
            attend = _attention(shape, backend, device, torch.bfloat16)
        except DsmError:
            continue
        inputs, upstream = _inputs(shape, device)
        exact = tuple(tensor.detach().float().requires_grad_() for tensor in inputs)
        reference = _attention(shape, "dense", device, torch.float32)(*exact)
        expected = reference, *torch.autograd.grad(reference, exact, upstream.float())
        output = attend(*inputs)
        found = output, *torch.autograd.grad(output, inputs, upstream)
        names = ("output", "gradient of query", "gradient of key", "gradient of value")
        for name, ours, theirs in zip(names, found, expected, strict=True):
            tolerance = _FORWARD_TOLERANCE if name == "output" else _BACKWARD_TOLERANCE
            error = float((ours.detach().float() - theirs.detach()).norm() / theirs.detach().norm())
            if not error <= tolerance:  # NaN is not either
                raise AssertionError(f"{name} of {shape.name} is {error:.1e} from the dense mask's")
