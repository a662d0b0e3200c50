"""packed_metadata: equal to its plain torch reference and to what the gather writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.data.pack_index import PackStrategy, build_pack_index
from dsm_engine.data.packed_batch import PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import check_one_device, cuda_core
from dsm_engine.ops.packed_metadata import packed_metadata, packed_metadata_reference

PAD_ID = 3


def _cu_seqlens(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def _tokens(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randint(0, 500, (num_tokens,), generator=generator)
    return tokens, torch.rand(num_tokens, generator=generator) < 0.6


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_metadata_equals_the_reference(lengths: list[int]) -> None:
    cu_seqlens = _cu_seqlens(lengths)
    tokens, supervised = _tokens(sum(lengths))
    found = packed_metadata(cu_seqlens, tokens, supervised)
    expected = packed_metadata_reference(cu_seqlens, tokens, supervised)
    for name, found_output, expected_output in zip(found._fields, found, expected, strict=True):
        assert found_output.dtype == expected_output.dtype, name
        assert torch.equal(found_output, expected_output), name


def test_metadata_of_a_pack_written_by_hand() -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6, 6], dtype=torch.int32)
    supervised = torch.tensor([True, False, True, True, False, True])
    metadata = packed_metadata(cu_seqlens, torch.arange(10, 16), supervised)
    assert metadata.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert metadata.document_ids.tolist() == [0, 0, 0, 2, 3, 3]
    assert metadata.segment_ends.tolist() == [3, 3, 3, 4, 6, 6]
    assert metadata.labels.tolist() == [-100, 12, -100, -100, 15, -100]
    assert metadata.loss_weights.tolist() == [0, 1, 0, 0, 1, 0]
    assert metadata.max_seqlen.tolist() == [3]


def _dataset(prefix: Path) -> TokenizedDataset:
    random = np.random.default_rng(0)
    attributes = {"id": "", "source": "s", "language": "en", "format": "cot", "topic": ""}
    with TokenizedDatasetWriter(prefix, vocab_size=500) as writer:
        for length in random.integers(1, 61, 200).tolist():
            cuts = sorted(set(random.integers(0, length + 1, 4).tolist()))
            spans = list(zip(cuts[::2], cuts[1::2], strict=False))
            writer.add(random.integers(0, 500, length).tolist(), spans, **attributes)
        writer.finish()
    return TokenizedDataset(prefix)


@pytest.mark.parametrize("strategy", ["random", "best_fit", "first_fit_shuffle", "balanced"])
@pytest.mark.parametrize("alignment", [1, 8])
def test_metadata_equals_what_the_gather_writes(
    tmp_path: Path, strategy: PackStrategy, alignment: int
) -> None:
    dataset = _dataset(tmp_path / "x")
    packs = build_pack_index(
        dataset.lengths, capacity=64, strategy=strategy, seed=0, alignment=alignment
    )
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    num_supervised = 0
    for pack_idx in range(packs.num_packs):
        batch = reader.read(pack_idx)
        supervised = torch.zeros(packs.capacity, dtype=torch.bool)
        for document, begin in zip(batch.document_idx, batch.cu_seqlens, strict=False):
            for first, last in dataset.spans(int(document)).tolist():
                supervised[begin + first : begin + last] = True
        metadata = packed_metadata(
            torch.from_numpy(batch.cu_seqlens), torch.from_numpy(batch.tokens), supervised
        )
        assert metadata.position_ids.tolist() == batch.position_ids.tolist()
        assert metadata.document_ids.tolist() == batch.document_ids.tolist()
        assert metadata.labels.tolist() == batch.labels.tolist()
        assert metadata.loss_weights.tolist() == batch.loss_weights.tolist()
        assert metadata.max_seqlen.tolist() == [batch.max_seqlen]
        num_supervised += batch.num_supervised
    assert num_supervised > 0


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], "from 0 to 4, found 2 entries from 0 to 5"),
        ([1, 4], "from 0 to 4, found 2 entries from 1 to 4"),
        ([0, 3, 2, 4], "falls at entry 2, from 3 to 2"),
        ([0], "two or more int32"),
    ],
)
def test_cu_seqlens_that_are_no_pack_are_rejected(cu_seqlens: list[int], message: str) -> None:
    with pytest.raises(DsmError, match=message):
        packed_metadata(torch.tensor(cu_seqlens, dtype=torch.int32), *_tokens(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 4])}, r"found torch\.int64"),
        ({"tokens": torch.zeros(4)}, r"tokens is one row of torch\.int64, found torch\.float32"),
        ({"tokens": torch.zeros(1, 4, dtype=torch.long)}, r"tokens is one row.*\(1, 4\)"),
        ({"supervised": torch.ones(4)}, r"supervised is one row of torch\.bool"),
        ({"supervised": torch.ones(5, dtype=torch.bool)}, "each of 4 tokens, found 5"),
    ],
)
def test_inputs_of_other_types_and_shapes_are_rejected(
    change: dict[str, torch.Tensor], message: str
) -> None:
    tokens, supervised = _tokens(4)
    inputs = {"cu_seqlens": _cu_seqlens([4]), "tokens": tokens, "supervised": supervised}
    with pytest.raises(DsmError, match=message):
        packed_metadata(**(inputs | change))


def test_tensors_of_two_devices_are_rejected() -> None:
    with pytest.raises(DsmError, match="dsm::op: all tensors are on one device, found cpu, meta"):
        check_one_device("op", torch.zeros(1), torch.zeros(1, device="meta"))


def test_strided_inputs_are_read_as_they_are() -> None:
    cu_seqlens = torch.tensor([0, 9, 2, 9, 4, 9], dtype=torch.int32)[::2]
    supervised = torch.tensor([True, False] * 4)[::2]
    metadata = packed_metadata(cu_seqlens, torch.arange(8)[::2], supervised)
    assert metadata.document_ids.tolist() == [0, 0, 1, 1]
    assert metadata.labels.tolist() == [2, -100, 6, -100]


def test_the_operator_passes_opcheck() -> None:
    result = torch.library.opcheck(
        torch.ops.dsm.packed_metadata.default, (_cu_seqlens([3, 7, 6, 0]), *_tokens(16))
    )
    assert set(result.values()) == {"SUCCESS"}


def test_the_operator_compiles_without_a_graph_break() -> None:
    cu_seqlens, (tokens, supervised) = _cu_seqlens([3, 7, 6, 0]), _tokens(16)
    compiled = torch.compile(packed_metadata, fullgraph=True, backend="eager")
    for found, expected in zip(
        compiled(cu_seqlens, tokens, supervised),
        packed_metadata(cu_seqlens, tokens, supervised),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.skipif(cuda_core is None, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_launch_without_a_driver_is_a_clean_error() -> None:
    assert cuda_core is not None
    with pytest.raises(RuntimeError, match="packed_metadata: CUDA error"):
        cuda_core.packed_metadata(0, 3, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0)
