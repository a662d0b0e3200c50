"""The two halves of the check, on one pack and this rank's part of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from dsm_engine.model.config import ModelConfig, Precision
from dsm_engine.parallel.context import ParallelContext
from dsm_engine.training.isolation.comparison import (
    Agreement,
    Comparison,
    furthest,
    relative_difference,
    rounding_bound,
)
from dsm_engine.training.isolation.numbers import (
    INPUT_GRADIENTS,
    KEYS,
    LOGITS,
    LOSSES,
    PARAMETER_GRADIENTS,
    STAGE_INPUTS,
    PassNumbers,
    run_pass,
)
from dsm_engine.training.isolation.packs import (
    Pack,
    PackDocument,
    choose_documents,
    document_alone,
    with_changed_document,
    without_loss_of,
)
from dsm_engine.training.isolation.report import PackResult
from dsm_engine.training.stream import MicroBatch


@dataclass(frozen=True, kw_only=True)
class IsolationOptions:
    """How much is compared, and how."""

    num_packs: int = 3
    """Packs that are read: those with the most documents."""
    num_documents: int = 6
    """Documents of each pack that are changed in turn; all where a pack has no more."""
    precisions: tuple[Precision, ...] = ()
    """Default: the recipe's."""
    gradients: bool = True
    """Without, losses, logits and keys alone are compared: for attention without a backward."""
    keep_width: bool = False
    """Documents alone stand in packs as wide as the one they come from, behind tail padding, for
    attention that is compiled for every width."""
    bound: float = 0.0
    """Largest difference for isolation, as a share of the largest magnitude in the tensor; 0
    compares bits. Scales that a tensor's values share, as in tensorwise FP8, need one."""


def num_passes(pack: Pack, options: IsolationOptions) -> int:
    """How often `check_pack` runs the model on this pack."""
    changed = len(choose_documents(pack.documents, options.num_documents))
    return 2 + changed * (3 if options.gradients else 1) + len(pack.documents)


def check_pack(
    chunks: Sequence[GPTModel],
    pack: Pack,
    model: ModelConfig,
    precision: Precision,
    context: ParallelContext,
    options: IsolationOptions,
    on_pass: Callable[[], None] = lambda: None,
) -> PackResult:
    """Runs both halves; every rank that holds a part of the model (TP, PP, CP) calls it with the
    same pack."""
    return _PackCheck(chunks, pack, model, precision, context, options, on_pass).result()


class _PackCheck:
    def __init__(
        self,
        chunks: Sequence[GPTModel],
        pack: Pack,
        model: ModelConfig,
        precision: Precision,
        context: ParallelContext,
        options: IsolationOptions,
        on_pass: Callable[[], None],
    ) -> None:
        self._chunks = chunks
        self._pack = pack
        self._model = model
        self._precision: Precision = precision
        self._context = context
        self._options = options
        self._on_pass = on_pass

    def result(self) -> PackResult:
        documents = self._pack.documents
        changed = choose_documents(documents, self._options.num_documents)
        packed = self._run(self._pack.batch)
        comparison = Comparison(rank=self._context.rank, bound=self._options.bound)
        comparison.compare_repeated(packed, self._run(self._pack.batch))
        for place in changed:
            self._change(documents[place], packed, comparison)
        if self._options.gradients and not comparison.num_compared[PARAMETER_GRADIENTS]:
            comparison.unreached.append("parameter gradients: no other document has a loss")
        return PackResult(
            precision=self._precision,
            pack_idx=self._pack.pack_idx,
            num_documents=len(documents),
            changed=tuple(documents[place].name for place in changed),
            num_compared=comparison.num_compared,
            movements=tuple(comparison.movements),
            unreached=tuple(comparison.unreached),
            unrepeated=tuple(comparison.unrepeated),
            agreements=self._compare_unpacked(packed),
        )

    def _run(self, batch: MicroBatch, loss_weights: Tensor | None = None) -> PassNumbers:
        numbers = run_pass(
            self._chunks,
            batch,
            self._context,
            gradients=self._options.gradients,
            loss_weights=loss_weights,
        )
        self._on_pass()
        return numbers

    def _change(self, document: PackDocument, packed: PassNumbers, comparison: Comparison) -> None:
        batch = self._pack.batch
        changed = with_changed_document(self._pack, document, self._model.vocab_size)
        comparison.compare_tokens(packed, self._run(changed), self._pack.documents, document)
        if self._options.gradients:
            others = without_loss_of(batch, document)
            before, after = self._run(batch, others), self._run(changed, others)
            comparison.compare_parameters(before, after, document)

    def _compare_unpacked(self, packed: PassNumbers) -> dict[str, Agreement]:
        """By kind, the document or parameter whose packed numbers are furthest from the unpacked
        ones; the gradients of parameters are summed over the documents."""
        differences: dict[str, dict[str, float]] = {kind: {} for kind in packed.tokens}
        for kind in (STAGE_INPUTS, INPUT_GRADIENTS):  # under SP they stand on other ranks
            differences.pop(kind, None)
        sums = {
            name: torch.zeros_like(gradient, dtype=torch.float32)
            for name, gradient in packed.parameters.items()
        }
        multiple_of = self._pack.batch.tokens.size(1)
        if not self._options.keep_width:
            multiple_of = self._slots_divisor()
        for document in self._pack.documents:
            alone = self._run(document_alone(self._pack.batch, document, multiple_of=multiple_of))
            length = document.end - document.start
            for kind, by_document in differences.items():
                reference = alone.tokens[kind].of(0, length)
                by_document[document.name] = relative_difference(
                    packed.tokens[kind].of(document.start, document.end),
                    reference,
                    # A loss is a difference of logits, and may be far smaller than they are.
                    _largest(alone.tokens[LOGITS].of(0, length)) + reference
                    if kind == LOSSES
                    else None,
                )
            for name, gradient in alone.parameters.items():
                sums[name] += gradient
        if sums:
            differences[PARAMETER_GRADIENTS] = {
                name: relative_difference(gradient, sums[name])
                for name, gradient in packed.parameters.items()
            }
        return {
            kind: furthest(
                by_name,
                rounding_bound(self._precision, kind, self._num_layers(kind)),
                self._context.rank,
            )
            for kind, by_name in differences.items()
        }

    def _slots_divisor(self) -> int:
        """What the tokens of a pack are split evenly over."""
        config = self._chunks[0].config
        sp = self._context.tp_size if config.sequence_parallel else 1
        cp = self._context.cp_size
        return sp * (2 * cp if cp > 1 else 1)

    def _num_layers(self, kind: str) -> int:
        """Layers that numbers of the kind went through."""
        if kind == KEYS:  # those of the first layer of each chunk
            decoder: Any = self._chunks[-1].decoder
            return decoder.layers[0].layer_number  # counted from 1, over all stages
        return self._model.num_layers


def _largest(logits: Tensor) -> Tensor:
    """[tokens], the largest magnitude of a token's logits on this rank."""
    return logits.abs().amax(-1).float()
