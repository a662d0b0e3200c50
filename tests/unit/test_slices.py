"""Loss by slice: which slices there are, and sums that add up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsm_engine.data.sidecars import AttributeTable, AttributeTableWriter
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.training import slices
from dsm_engine.training.config import LoggingConfig
from dsm_engine.training.slices import SliceTable, slice_notes, slice_sums, slices_of

DOCUMENTS = [
    ("gsm8k", "en", "cot", "algebra"),
    ("gsm8k", "en", "tir", ""),
    ("ape210k", "zh", "cot", ""),
    ("gsm8k", "en", "cot", "algebra"),
]


def _table(tmp_path: Path, documents: list[tuple[str, str, str, str]]) -> AttributeTable:
    writer = AttributeTableWriter(tmp_path)
    for document_idx, values in enumerate(documents):
        writer.add(f"d{document_idx}", values)
    path = tmp_path / "x.attributes"
    with path.open("wb") as file:
        writer.write_to(file)
    writer.close()
    return AttributeTable(path)


def test_every_value_and_every_combination_that_occurs_is_a_slice(tmp_path: Path) -> None:
    table = SliceTable(_table(tmp_path, DOCUMENTS), max_slices=10)
    assert sorted(table.names) == [
        "all/ape210k/zh/cot/(none)",
        "all/gsm8k/en/cot/algebra",
        "all/gsm8k/en/tir/(none)",
        "format/cot",
        "format/tir",
        "language/en",
        "language/zh",
        "source/ape210k",
        "source/gsm8k",
        "topic/(none)",
        "topic/algebra",
    ]
    assert table.left_out == []
    rows = table.of_documents(np.array([2, 0, 3]), 4)
    named = [[table.names[idx] for idx in row if idx >= 0] for row in rows]
    expected = ["source/gsm8k", "language/en", "format/cot", "topic/algebra"]
    assert named == [
        [
            "source/ape210k",
            "language/zh",
            "format/cot",
            "topic/(none)",
            "all/ape210k/zh/cot/(none)",
        ],
        [*expected, "all/gsm8k/en/cot/algebra"],
        [*expected, "all/gsm8k/en/cot/algebra"],
        [],
    ]


def test_what_has_too_many_values_is_left_out_and_named(tmp_path: Path) -> None:
    documents = [("s", "en", "cot", f"topic{i}") for i in range(5)]
    table = SliceTable(_table(tmp_path, documents), max_slices=4)
    assert table.names == ("source/s", "language/en", "format/cot")
    assert table.left_out == ["topic (5 values)", "combinations"]
    more = [("s", "en", f, str(i)) for i in range(3) for f in ("cot", "tir")]
    table = SliceTable(_table(tmp_path, more), max_slices=4)
    assert table.left_out == ["combinations"] and len(table.names) == 7


def test_what_is_left_out_is_said_when_the_run_starts(
    sample_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TokenizedDataset(sample_data / "train")
    few = LoggingConfig(max_slices=1)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    (note,) = slice_notes(slices_of(dataset, few, cpu), few, cpu)
    assert "format (" in note and "more than logging.max_slices" in note
    assert slice_notes(slices_of(dataset, LoggingConfig(), cpu), LoggingConfig(), cpu) == []
    monkeypatch.setattr(slices, "cuda_core", None)
    assert slices_of(dataset, few, cuda) is None
    (note,) = slice_notes(None, few, cuda)
    assert "built without nvcc" in note
    off = LoggingConfig(slices=False)
    assert slices_of(dataset, off, cuda) is None and slice_notes(None, off, cuda) == []


def test_combinations_that_one_attribute_tells_apart_are_not_said_twice(tmp_path: Path) -> None:
    table = SliceTable(
        _table(tmp_path, [("a", "en", "cot", ""), ("b", "zh", "cot", "")]), max_slices=9
    )
    assert not any(name.startswith("all/") for name in table.names)
    assert table.left_out == []


def test_slices_of_more_documents_than_are_counted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = _table(tmp_path, DOCUMENTS)
    whole = SliceTable(attributes, max_slices=10)
    monkeypatch.setattr(slices, "_DOCUMENTS_AT_A_TIME", 1)
    one_by_one = SliceTable(attributes, max_slices=10)
    assert one_by_one.names == whole.names
    idx = np.arange(4)
    assert (one_by_one.of_documents(idx, 5) == whole.of_documents(idx, 5)).all()
    monkeypatch.setattr(slices, "_MOST_COMBINATIONS", 15)
    assert SliceTable(attributes, max_slices=10).left_out == ["combinations"]


def test_a_damaged_attribute_is_said(tmp_path: Path) -> None:
    _table(tmp_path, DOCUMENTS)
    path = tmp_path / "x.attributes"
    content = bytearray(path.read_bytes())
    topics = b"".join(code.to_bytes(4, "little") for code in (0, 1, 1, 0))
    at = content.rindex(topics) + 4
    content[at] = 7
    path.write_bytes(content)
    with pytest.raises(DsmError, match="a document has a topic that is not among the 2"):
        SliceTable(AttributeTable(path), max_slices=10)


def test_sums_of_an_attribute_are_the_sums_of_the_pack(tmp_path: Path) -> None:
    table = SliceTable(_table(tmp_path, DOCUMENTS), max_slices=10)
    lengths = [5, 9, 3, 7, 8]  # the last is padding
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(1, 32, generator=generator, requires_grad=True)
    weights = (torch.rand(1, 32, generator=generator) > 0.4).float() * 0.25
    weights[0, 24:] = 0
    ids = torch.from_numpy(table.of_documents(np.arange(4), 5))
    sums = slice_sums(losses, weights, cu_seqlens, ids, len(table.names))
    assert not sums.requires_grad
    found = table.losses(sums.tolist())
    supervised = losses[weights > 0].double()
    for attribute in ("source", "language", "format", "topic", "all"):
        values = [found[name] for name in found if name.startswith(f"{attribute}/")]
        assert sum(value.tokens for value in values) == len(supervised)
        total = sum(value.loss * value.tokens for value in values)
        assert total == pytest.approx(supervised.sum().item(), rel=1e-12)
    chinese = losses[0, 14:17][weights[0, 14:17] > 0]
    assert found["language/zh"].tokens == len(chinese) > 0
    assert found["language/zh"].loss == pytest.approx(chinese.mean().item(), rel=1e-6)


def test_a_slice_without_supervised_tokens_is_left_out(tmp_path: Path) -> None:
    table = SliceTable(_table(tmp_path, DOCUMENTS), max_slices=10)
    zeros = [0.0] * 2 * len(table.names)
    assert table.losses(zeros) == {}
