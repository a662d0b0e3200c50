"""Loss by slice: by each value of source, language, format and topic, and by their combinations.

A document is of one slice of each attribute. The sums are computed on the device that has the
losses, beside the loss itself, and travel with it: no kernel of the model waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsm_engine.data.sidecars import COLUMNS, AttributeTable
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.ops.library import cuda_core
from dsm_engine.ops.segment_loss import segment_loss
from dsm_engine.training.config import LoggingConfig

COMBINATION = "all"
"""What the names of slices by all attributes together begin with."""
_NO_VALUE = "(none)"


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
    are more, or no more than one attribute tells apart already; `left_out` says which.
    """

    def __init__(self, attributes: AttributeTable, *, max_slices: int) -> None:
        self.names: tuple[str, ...] = ()
        """source/gsm8k, ..., topic/algebra, all/gsm8k/en/cot/algebra"""
        self.left_out: list[str] = []
        self._columns: list[NDArray[np.int32]] = []
        columns = [attributes.column(name) for name in COLUMNS]
        for name, (values, codes) in zip(COLUMNS, columns, strict=True):
            if len(values) > max_slices:
                self.left_out.append(f"{name} ({len(values):,} values)")
                continue
            self._add([f"{name}/{value or _NO_VALUE}" for value in values], codes)
        combinations, codes = _combinations(columns)
        if len(combinations) > max_slices:
            self.left_out.append(f"combinations ({len(combinations):,})")
        elif len(combinations) > max(len(values) for values, _ in columns):
            self._add([f"{COMBINATION}/{'/'.join(values)}" for values in combinations], codes)

    def of_documents(self, document_idx: NDArray[np.integer], num_rows: int) -> NDArray[np.int32]:
        """Slice numbers, int32 [num_rows, attributes]: a row for each document, and -1, no slice,
        in the rows behind them, which are padding."""
        rows = np.full((num_rows, len(self._columns)), -1, np.int32)
        for column_idx, column in enumerate(self._columns):
            rows[: len(document_idx), column_idx] = column[document_idx]
        return rows

    def losses(self, sums: Sequence[float]) -> dict[str, SliceLoss]:
        """The slices that have tokens, from losses and then counts, 2 x slices numbers."""
        slices = zip(self.names, sums[: len(self.names)], sums[len(self.names) :], strict=True)
        return {
            name: SliceLoss(loss=loss / count, tokens=int(count))
            for name, loss, count in slices
            if count
        }

    def notes(self) -> list[str]:
        """What is left out, for the run's log."""
        if not self.left_out:
            return []
        return [f"no losses by {', '.join(self.left_out)}: more than logging.max_slices"]

    def _add(self, names: list[str], codes: NDArray[np.integer]) -> None:
        self._columns.append(codes.astype(np.int32) + np.int32(len(self.names)))
        self.names += tuple(names)


def slices_of(
    dataset: TokenizedDataset, logging: LoggingConfig, device: torch.device
) -> SliceTable | None:
    """The slices the recipe asks for; None where it does not, or a GPU has no operator for them."""
    if not logging.slices or (device.type == "cuda" and cuda_core is None):
        return None
    return SliceTable(dataset.attribute_table, max_slices=logging.max_slices)


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


def _combinations(
    columns: Sequence[tuple[list[str], NDArray[np.uint32]]],
) -> tuple[list[tuple[str, ...]], NDArray[np.integer]]:
    """The combinations of values that documents have, and each document's number of one."""
    key = np.zeros(len(columns[0][1]), np.int64)
    for values, codes in columns:
        key = key * max(len(values), 1) + codes
    found, codes = np.unique(key, return_inverse=True)
    named: list[tuple[str, ...]] = []
    for number in found.tolist():
        values_of_one: list[str] = []
        for values, _ in reversed(columns):
            number, value_idx = divmod(number, max(len(values), 1))
            values_of_one.append(values[value_idx] or _NO_VALUE)
        named.append(tuple(reversed(values_of_one)))
    return named, codes
