"""Slices of flattened tensors as boxes: every element once, in order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.training.checkpoint.moments import boxes_of_slice


@given(st.data())
def test_the_boxes_of_a_slice_are_its_elements_in_order(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    start = data.draw(st.integers(0, numbers.numel() - 1))
    end = data.draw(st.integers(start + 1, numbers.numel()))
    boxes = boxes_of_slice(start, end, shape)
    assert len(boxes) <= 3
    found = []
    for box in boxes:
        assert box.start == start + len(found)
        rows = tuple(slice(at, at + size) for at, size in zip(box.offset, box.shape, strict=True))
        found += numbers[rows].flatten().tolist()
    assert found == list(range(start, end))
