"""From parts to the tokenized dataset: the chosen documents of each source, as often as chosen."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.ledger import Ledger, SourceLedger
from dsm_engine.data.preparation.mixture import SourceShare
from dsm_engine.data.preparation.part import Part
from dsm_engine.data.preparation.resolve import Survivors
from dsm_engine.data.tokenized_dataset import TokenizedDatasetWriter


def assemble(
    writer: TokenizedDatasetWriter,
    read_part: Callable[[int], Part],
    survivors: Sequence[Survivors],
    shares: Sequence[tuple[str, SourceShare]],
    *,
    seed: int,
    ledger: Ledger,
) -> None:
    """Writes the documents, one part held at a time, and completes the ledger.

    `shares` are by source of the recipe, with its name, in order; so are the documents.
    """
    for source_idx, (name, share) in enumerate(shares):
        _account(ledger.source(name), share)
        parts = [part for part in survivors if part.source_idx == source_idx]
        for pass_idx, taken in enumerate(share.passes(seed=seed, source_idx=source_idx)):
            first = 0
            for part in parts:
                chosen = part.documents[taken[first : first + len(part.documents)]]
                first += len(part.documents)
                if len(chosen):
                    _add(writer, read_part(part.block), chosen, ledger, repeated=pass_idx > 0)


def _account(ledger: SourceLedger, share: SourceShare) -> None:
    """Enters what the mixture leaves out."""
    if over_cap := share.available - share.capped:
        ledger.dropped["over_cap"] += over_cap
    if over_share := share.capped - share.chosen:
        ledger.dropped["over_share"] += over_share


def _add(
    writer: TokenizedDatasetWriter,
    part: Part,
    documents: NDArray[np.int32],
    ledger: Ledger,
    *,
    repeated: bool,
) -> None:
    chosen = np.zeros(part.num_documents, np.bool_)
    chosen[documents] = True
    if chosen.all():
        tokens, spans, ids = part.tokens, part.spans, part.ids
    else:
        tokens = part.tokens[np.repeat(chosen, part.lengths)]
        spans = part.spans[np.repeat(chosen, part.span_counts)]
        ids = part.ids[np.repeat(chosen, part.id_lengths)]
    lengths = part.lengths[chosen]
    writer.add_documents(
        tokens,
        lengths,
        spans=spans,
        span_counts=part.span_counts[chosen],
        ids=ids,
        id_lengths=part.id_lengths[chosen],
        names=part.counts.names,
        codes=part.codes[chosen],
    )
    counts = ledger.source(part.counts.source)
    if repeated:
        counts.repeated += len(lengths)
    else:
        counts.kept += len(lengths)
        counts.truncated += int(part.truncated[chosen].sum())
        if "benchmark" in part.extra:  # where such documents are kept
            counts.contaminated_kept += int((part.extra["benchmark"][chosen] >= 0).sum())
        used = np.bincount(part.licences[chosen], minlength=len(part.counts.licences))
        for licence, number in zip(part.counts.licences, used.tolist(), strict=True):
            if number:
                counts.licences[licence] += number
    counts.tokens += len(tokens)
    counts.supervised_tokens += int((spans[:, 1] - spans[:, 0]).sum(dtype=np.int64))
    counts.unknown_tokens += int(part.unknown[chosen].sum(dtype=np.int64))
