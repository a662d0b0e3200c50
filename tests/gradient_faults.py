"""Faults that the comparison of gradients must find, each put into the engine's step or stream."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from dsm_engine.training import gradients, optimizer, step, weighting
from dsm_engine.training.isolation.schedule import without_loss
from dsm_engine.training.stream import MicroBatch, PackStream
from tests.isolation_faults import add_noise

_FINALIZE = sys.modules[finalize_model_grads.__module__]
Patch = Callable[[Any, str, Any], None]
"""pytest's monkeypatch.setattr, or the like of it."""


def average_per_micro_batch(patch: Patch) -> None:
    """Each micro-batch's mean loss; what is reported is right."""
    right = step._loss_and_report

    def mean_of_means(batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, Any]:
        loss_sum, num_tokens, report = right(batch, losses)
        return loss_sum / num_tokens.clamp(min=1), torch.ones_like(num_tokens), report

    patch(step, "_loss_and_report", mean_of_means)


def average_per_rank(patch: Patch) -> None:
    """Each data-parallel rank divides by its own tokens, and ranks are averaged."""

    def mean_of_means(chunks: Any, num_tokens: Tensor, **keywords: Any) -> None:
        for chunk in chunks:
            chunk.scale_gradients(1.0 / max(int(num_tokens), 1))
        finalize_model_grads(chunks, None, **keywords)
        for chunk in chunks:
            chunk.scale_gradients(1.0 / parallel_state.get_data_parallel_world_size())

    patch(optimizer, "finalize_model_grads", mean_of_means)


def average_over_ranks(patch: Patch) -> None:
    """The gradient is right, but for one more division by the number of ranks that it is summed
    over: the same for every split."""

    def scaled(chunks: Any, num_tokens: Tensor, **keywords: Any) -> None:
        finalize_model_grads(chunks, num_tokens, **keywords)
        for chunk in chunks:
            ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
            chunk.scale_gradients(1.0 / ranks)

    patch(optimizer, "finalize_model_grads", scaled)


def leave_out_sequence_parallel_sums(patch: Patch) -> None:
    """Norms keep the gradient of their own rank's tokens."""
    patch(_FINALIZE, "_allreduce_non_tensor_model_parallel_grads", lambda *_, **__: None)


def leave_out_the_tied_embedding(patch: Patch) -> None:
    """First and last stage keep their own part of the embedding's gradient."""
    patch(_FINALIZE, "_allreduce_word_embedding_grads", lambda *_, **__: None)


def drop_a_micro_batch(patch: Patch) -> None:
    """The last of a step has no loss."""
    right = PackStream.micro_batches

    def without_the_last(self: PackStream, pack_indices: list[int]) -> Iterator[MicroBatch]:
        *others, last = right(self, pack_indices)
        yield from others
        yield without_loss(last)

    patch(PackStream, "micro_batches", without_the_last)


def shift_labels(patch: Patch) -> None:
    """Every label is that of the position before."""
    right = PackStream._to_rank

    def shifted(self: PackStream, *read: Any) -> MicroBatch:
        batch = right(self, *read)
        return replace(batch, labels=batch.labels.roll(1, 1).clamp(min=0))

    patch(PackStream, "_to_rank", shifted)


def count_a_document_twice(patch: Patch) -> None:
    """The first half of a pack's tokens weigh double: each is one token of the count."""
    right = PackStream._to_rank

    def weighted(self: PackStream, *read: Any) -> MicroBatch:
        batch = right(self, *read)
        weights = batch.loss_weights.clone()
        weights[:, : weights.size(1) // 2] *= 2.0
        return replace(batch, loss_weights=weights)

    patch(PackStream, "_to_rank", weighted)


def read_a_pack_twice(patch: Patch) -> None:
    """The first of a step's packs stands in the place of the last too."""
    right = PackStream.micro_batches

    def repeated(self: PackStream, pack_indices: list[int]) -> Iterator[MicroBatch]:
        yield from right(self, [*pack_indices[:-1], pack_indices[0]])

    patch(PackStream, "micro_batches", repeated)


def be_noisy(patch: Patch) -> None:
    """Other numbers in every pass."""
    right = gradients.build_chunks

    def build(*arguments: Any, **keywords: Any) -> Any:
        chunks = right(*arguments, **keywords)
        add_noise(chunks[0])
        return chunks

    patch(gradients, "build_chunks", build)


def weigh_pieces_apart(patch: Patch) -> None:
    """Pieces of one example in several packs of a step weigh as examples of their own."""
    patch(weighting, "_shared_examples", lambda *_: {})


FAULTS: dict[str, Callable[[Patch], None]] = {
    "average per micro-batch": average_per_micro_batch,
    "average per rank": average_per_rank,
    "average over ranks": average_over_ranks,
    "sequence-parallel sums left out": leave_out_sequence_parallel_sums,
    "tied embedding left out": leave_out_the_tied_embedding,
    "micro-batch dropped": drop_a_micro_batch,
    "labels shifted": shift_labels,
    "document counted twice": count_a_document_twice,
    "pack read twice": read_a_pack_twice,
    "noise": be_noisy,
    "pieces weighed apart": weigh_pieces_apart,
}
