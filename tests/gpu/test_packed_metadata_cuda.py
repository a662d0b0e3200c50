"""The CUDA operators against the CPU's, bitwise: both run the same host-device body."""

import pytest
import torch

from dsm_engine.ops.dense_mask import dense_mask
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.packed_metadata import packed_metadata

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_core is None or not torch.cuda.is_available(), reason="needs nvcc and a CUDA device"
    ),
]


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 16, 127, 128, 1000, 4096])
def test_cuda_equals_the_cpu(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    cuts = torch.randint(0, num_tokens + 1, (20,), generator=generator).sort().values
    ends = torch.tensor([num_tokens, num_tokens])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), cuts, ends]).int()
    on_device = cu_seqlens.cuda()
    for expected, found in zip(
        packed_metadata(cu_seqlens, num_tokens), packed_metadata(on_device, num_tokens), strict=True
    ):
        assert torch.equal(expected, found.cpu())
    assert torch.equal(dense_mask(cu_seqlens, num_tokens), dense_mask(on_device, num_tokens).cpu())
