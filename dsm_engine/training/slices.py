"""Loss by slice: by each value of source, language, format and topic, and by their combinations.

A document is of one slice of each attribute. The sums are computed on the device that has the
losses, beside the loss itself, and travel with it: no kernel of the model waits for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsm_engine.data.sidecars import COLUMNS, AttributeTable
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.errors import DsmError
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.segment_loss import segment_loss
from dsm_engine.training.config import LoggingConfig

COMBINATION = "all"
"""What the names of slices by all attributes together begin with."""
_NO_VALUE = "(none)"
_MOST_COMBINATIONS = 1 << 20
_DOCUMENTS_AT_A_TIME = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SliceLoss:
    """Loss of the supervised tokens of a slice, over all ranks."""

    loss: float
    """Mean a supervised token (nats)."""
    tokens: int
    """Supervised tokens."""


class SliceTable:
    """The slices of a dataset's documents: which there are, and which a document is of.

    An attribute of more than `max_slices` values is left out, and so are combinations where there
    are more, or no more than one attribute tells apart already; `left_out` says which. Beyond the
    mapped attributes themselves it takes no memory that grows with the documents. Raises DsmError
    where they are damaged.
    """

    def __init__(self, attributes: AttributeTable, *, max_slices: int) -> None:
        self.names: tuple[str, ...] = ()
        """source/gsm8k, ..., topic/algebra, all/gsm8k/en/cot/algebra"""
        self.left_out: list[str] = []
        self._columns: list[tuple[int, NDArray[np.uint32]]] = []  # of the first slice, the others
        self._combinations: _Combinations | None = None
        columns = [attributes.column(name) for name in COLUMNS]
        for name, (values, codes) in zip(COLUMNS, columns, strict=True):
            if len(values) > max_slices:
                self.left_out.append(f"{name} ({len(values):,} values)")
                continue
            self._columns.append((len(self.names), codes))
            self.names += tuple(f"{name}/{value or _NO_VALUE}" for value in values)
        for (values, codes), name in zip(columns, COLUMNS, strict=True):
            if int(codes.max(initial=0)) >= max(len(values), 1):
                raise DsmError(
                    f"{attributes.path}: is damaged: a document has a {name} that is not among the"
                    f" {len(values)} there are; dsm verify says where"
                )
        combinations = None if self.left_out else _Combinations.of(columns)
        if combinations is None or len(combinations.values) > max_slices:
            self.left_out.append("combinations")
        elif len(combinations.values) > max(len(values) for values, _ in columns):
            self._combinations = combinations.behind(len(self.names))
            self.names += tuple(f"{COMBINATION}/{'/'.join(v)}" for v in combinations.values)

    def of_documents(self, document_idx: NDArray[np.integer], num_rows: int) -> NDArray[np.int32]:
        """Slice numbers, int32 [num_rows, attributes]: a row for each document, and -1, no slice,
        in the rows behind them, which are padding."""
        numbers = [first + codes[document_idx].astype(np.int32) for first, codes in self._columns]
        if self._combinations is not None:
            numbers.append(self._combinations.of_documents(document_idx))
        rows = np.full((num_rows, len(numbers)), -1, np.int32)
        for column_idx, column in enumerate(numbers):
            rows[: len(document_idx), column_idx] = column
        return rows

    def losses(self, sums: Sequence[float]) -> dict[str, SliceLoss]:
        """The slices that have tokens, from losses and then counts, 2 x slices numbers."""
        slices = zip(self.names, sums[: len(self.names)], sums[len(self.names) :], strict=True)
        return {
            name: SliceLoss(loss=loss / count, tokens=int(count))
            for name, loss, count in slices
            if count
        }


def slices_of(
    dataset: TokenizedDataset, logging: LoggingConfig, device: torch.device
) -> SliceTable | None:
    """The slices the recipe asks for; None where it does not, or a GPU has no operator for them."""
    if not logging.slices or _lacks_operators(device):
        return None
    return SliceTable(dataset.attribute_table, max_slices=logging.max_slices)


def slice_notes(
    table: SliceTable | None, logging: LoggingConfig, device: torch.device
) -> list[str]:
    """What the recipe asks for and the run will not log, for whoever watches it."""
    if logging.slices and _lacks_operators(device):
        return ["no losses by slice: dsm_engine was built without nvcc and has no CUDA operators"]
    if table is None or not table.left_out:
        return []
    return [f"no losses by {', '.join(table.left_out)}: more than logging.max_slices"]


def _lacks_operators(device: torch.device) -> bool:
    return device.type == "cuda" and cuda_core is None


def slice_sums(
    token_losses: Tensor,
    loss_weights: Tensor,
    cu_seqlens: Tensor,
    slice_ids: Tensor,
    num_slices: int,
) -> Tensor:
    """Sums of the losses of supervised tokens by slice, then their numbers: float64 [2 x slices].

    token_losses and loss_weights are [1, T], cu_seqlens int32 [D + 1], slice_ids int32 [D, K]. A
    token counts 1, whatever its weight in the loss. Counts are exact up to 2^53.
    """
    sums = segment_loss(
        token_losses.detach().flatten().float(),
        (loss_weights.flatten() > 0).float(),
        cu_seqlens,
        slice_ids,
        num_slices,
    )
    return torch.cat([sums.slice_losses, sums.slice_counts.double()])


@dataclass(frozen=True, kw_only=True)
class _Combinations:
    """The combinations of values that documents have."""

    values: list[tuple[str, ...]]
    columns: list[tuple[list[str], NDArray[np.uint32]]]
    number_of: NDArray[np.int32]
    """By mixed-radix number of the values, -1 where no document has them."""

    @classmethod
    def of(cls, columns: list[tuple[list[str], NDArray[np.uint32]]]) -> "_Combinations | None":
        """None where there can be more than are worth counting."""
        possible = math.prod(len(values) for values, _ in columns)
        if possible > _MOST_COMBINATIONS:
            return None
        occurs = np.zeros(possible, bool)
        for begin in range(0, len(columns[0][1]), _DOCUMENTS_AT_A_TIME):
            part = slice(begin, begin + _DOCUMENTS_AT_A_TIME)
            occurs[_mixed_radix(columns, part)] = True
        found = np.flatnonzero(occurs)
        number_of = np.full(possible, -1, np.int32)
        number_of[found] = np.arange(len(found))
        shape = [len(values) for values, _ in columns]
        named = [
            tuple(values[i] or _NO_VALUE for (values, _), i in zip(columns, places, strict=True))
            for places in zip(*np.unravel_index(found, shape), strict=True)
        ]
        return cls(values=named, columns=columns, number_of=number_of)

    def behind(self, first: int) -> "_Combinations":
        """The same, numbered from `first`."""
        return replace(self, number_of=self.number_of + np.int32(first))

    def of_documents(self, document_idx: NDArray[np.integer]) -> NDArray[np.int32]:
        return self.number_of[_mixed_radix(self.columns, document_idx)]


def _mixed_radix(
    columns: Sequence[tuple[list[str], NDArray[np.uint32]]], documents: Any
) -> NDArray[np.int64]:
    number = np.zeros(1, np.int64)
    for values, codes in columns:
        number = number * len(values) + codes[documents]
    return number
