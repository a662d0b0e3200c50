"""From a block of rows to its part: parse, render, verify, tokenize, and take fingerprints."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.example import Example, ExampleFault, ExampleOmitted
from dsm_engine.data.indexed_dataset import optimal_dtype
from dsm_engine.data.preparation.blocks import Block, SourceFile, block_rows, count_lines
from dsm_engine.data.preparation.part import FaultKind, Part, PartCounts, RowFault
from dsm_engine.data.preparation.tokenize import (
    TokenizedDocuments,
    choose_documents,
    count_tokens,
    cut_documents,
    tokenize,
    without_tokens,
)
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.data.segments import Segment
from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.data.sources.rows import Row
from dsm_engine.data.templates import Template
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.data.tokenizers.flat_ids import texts_holding
from dsm_engine.errors import DsmError

_MAX_SHOWN = 200  # characters of a reason


class Verifier(Protocol):
    """Runs the programs of examples."""

    def verify(self, examples: Sequence[Example]) -> list[ExampleFault | None]: ...

    def close(self) -> None: ...


Look = Callable[[Sequence[Example]], dict[str, NDArray[Any]]]
"""What a step finds out about examples: arrays by name, [num_examples, ...]."""


@dataclass(kw_only=True, slots=True)
class _Candidate:
    row: Row
    row_idx: int
    example: Example
    segments: list[Segment]


class BlockPreparer:
    """Makes parts of blocks; each process has one of its own.

    The arrays of `take_fingerprints` and `look_for_benchmarks` are for `resolve`; `make_verifier`
    is called when the first program is to be run. Without a tokenizer the documents
    have no tokens: they can be counted.
    """

    def __init__(
        self,
        recipe: PreprocessRecipe,
        sources: Sequence[SourceFile],
        template: Template,
        tokenizer: Tokenizer | None,
        *,
        take_fingerprints: Look | None = None,
        look_for_benchmarks: Look | None = None,
        make_verifier: Callable[[], Verifier] | None = None,
    ) -> None:
        self._recipe = recipe
        self._sources = sources
        self._template = template
        self._tokenizer = tokenizer
        self._missing_bytes = frozenset() if tokenizer is None else tokenizer.missing_bytes
        self._take_fingerprints = take_fingerprints
        self._look_for_benchmarks = look_for_benchmarks
        self._make_verifier = make_verifier
        self._verifier: Verifier | None = None
        self._phase_s: dict[str, float] = {}

    def prepare(self, block: Block) -> Part:
        """The block's part. Raises DsmError where the file itself is at fault."""
        self._phase_s = {}
        source = self._sources[block.source_idx]
        counts = PartCounts(
            block=block.number,
            source_idx=block.source_idx,
            source=source.reader.source,
            num_rows=0,
            num_lines=0,
            phase_s=self._phase_s,
        )
        with self._phase("parse"):
            candidates = list(self._read(block, source, counts))
        if self._make_verifier and self._recipe.sources[block.source_idx].verify:
            with self._phase("verification"):
                candidates = self._verify(candidates, counts)
        with self._phase("tokenize"):
            documents, candidates, truncated = self._tokenize(candidates, counts)
        counts.faults.sort(key=lambda fault: fault.row_idx)
        examples = [candidate.example for candidate in candidates]
        extra: dict[str, NDArray] = {}
        if self._take_fingerprints:
            with self._phase("deduplication"):
                extra |= self._take_fingerprints(examples)
        if (
            self._look_for_benchmarks
            and self._recipe.sources[block.source_idx].decontaminate != "off"
        ):
            with self._phase("decontamination"):
                extra |= self._look_for_benchmarks(examples)
                _keep_contaminated(candidates, extra["benchmark"], counts)
        with self._phase("tokenize"):
            return _part(counts, documents, candidates, truncated, extra, self._tokenizer)

    def close(self) -> None:
        """Ends what runs programs in this process; those of others end with them."""
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None

    def _read(self, block: Block, source: SourceFile, counts: PartCounts) -> Iterator[_Candidate]:
        recipe = self._recipe.sources[block.source_idx]
        for row in block_rows(block, source):
            row_idx = counts.num_rows
            counts.num_rows += 1
            try:
                example = source.reader.example(row)
                _check_chosen(example, recipe)
                segments = self._template.render(example)
                if self._missing_bytes:
                    _check_nothing_lost(segments, self._missing_bytes)
            except ExampleFault as fault:
                kind = "omitted" if isinstance(fault, ExampleOmitted) else "fault"
                counts.faults.append(_row_fault(row, row_idx, kind, fault))
                continue
            yield _Candidate(row=row, row_idx=row_idx, example=example, segments=segments)
        if block.rows is None:
            counts.num_lines = count_lines(source.path, block.begin, block.end)

    def _verify(self, candidates: list[_Candidate], counts: PartCounts) -> list[_Candidate]:
        if all(candidate.example.format == "cot" for candidate in candidates):
            return candidates
        if self._verifier is None:
            assert self._make_verifier is not None
            self._verifier = self._make_verifier()
        faults = self._verifier.verify([candidate.example for candidate in candidates])
        kept = []
        for candidate, fault in zip(candidates, faults, strict=True):
            if fault is None:
                kept.append(candidate)
            else:
                counts.faults.append(
                    _row_fault(candidate.row, candidate.row_idx, "unverified", fault)
                )
        return kept

    def _tokenize(
        self, candidates: list[_Candidate], counts: PartCounts
    ) -> tuple[TokenizedDocuments, list[_Candidate], NDArray[np.bool_]]:
        limit = self._recipe.max_tokens
        if self._tokenizer is None:
            num_documents = len(candidates)
            return without_tokens(num_documents), candidates, np.zeros(num_documents, np.bool_)
        segments = [candidate.segments for candidate in candidates]
        whole = tokenize(self._tokenizer, self._template, segments)
        documents, longer = cut_documents(whole, limit=limit)
        kept = documents.span_counts > 0
        truncate = self._recipe.overlong == "truncate"
        if not truncate:
            kept &= ~longer
        for idx in np.flatnonzero(~kept).tolist():
            if longer[idx] and not truncate:
                found = int(whole.lengths[idx])
                fault = ExampleFault("overlong", f"{found} tokens, and the limit is {limit}")
                kind = "overlong"
            else:
                reason = f"no answer within {limit} tokens"
                fault, kind = ExampleFault("no_supervised_tokens", reason), "fault"
            candidate = candidates[idx]
            counts.faults.append(_row_fault(candidate.row, candidate.row_idx, kind, fault))
        documents = choose_documents(documents, kept)
        left = [candidates[idx] for idx in np.flatnonzero(kept).tolist()]
        self._find_unknown(documents, left, counts)
        return documents, left, longer[kept]

    def _find_unknown(
        self, documents: TokenizedDocuments, candidates: Sequence[_Candidate], counts: PartCounts
    ) -> None:
        """Tells of the first document with an unknown token; the run may end there."""
        assert self._tokenizer is not None
        unk_id = self._tokenizer.unk_id
        found = np.flatnonzero(count_tokens(documents, unk_id))
        if not len(found):
            return
        candidate = candidates[int(found[0])]
        text = "".join(segment.text for segment in candidate.segments if not segment.control)
        unknown = (c for c in dict.fromkeys(text) if unk_id in self._tokenizer.encode(c))
        reason = f"the tokenizer has no token for {next(unknown, 'its text')!r}"
        fault = ExampleFault("unknown_token", reason)
        counts.faults.append(_row_fault(candidate.row, candidate.row_idx, "unknown", fault))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._phase_s[name] = self._phase_s.get(name, 0.0) + seconds


def _check_chosen(example: Example, recipe: SourceRecipe) -> None:
    if recipe.languages and example.language not in recipe.languages:
        raise ExampleOmitted("language_not_chosen", f"is in {example.language!r}")
    if recipe.formats and example.format not in recipe.formats:
        raise ExampleOmitted("format_not_chosen", f"is {example.format!r}")


def _check_nothing_lost(segments: Sequence[Segment], missing_bytes: frozenset[int]) -> None:
    for segment in segments:
        if not segment.control and texts_holding([segment.text], missing_bytes):
            lost = next(c for c in segment.text if not missing_bytes.isdisjoint(c.encode()))
            raise ExampleFault(
                "character_lost", f"the tokenizer has no token for {lost!r} and would drop it"
            )


def _row_fault(row: Row, row_idx: int, kind: FaultKind, fault: ExampleFault) -> RowFault:
    reason = str(fault)
    if len(reason) > _MAX_SHOWN and kind == "unverified":
        reason = reason[: _MAX_SHOWN - 3] + "..."
    return RowFault(
        row_idx=row_idx,
        line=row.line,
        byte=row.byte,
        kind=kind,
        cause=fault.cause,
        reason=reason,
        raw=b"" if kind == "omitted" else row.raw,
    )


def _keep_contaminated(
    candidates: Sequence[_Candidate], benchmark: NDArray, counts: PartCounts
) -> None:
    for idx in np.flatnonzero(benchmark >= 0).tolist():
        candidate = candidates[idx]
        fault = ExampleFault("contaminated", "")
        counts.contaminated.append(
            _row_fault(candidate.row, candidate.row_idx, "contaminated", fault)
        )


def _part(
    counts: PartCounts,
    documents: TokenizedDocuments,
    candidates: Sequence[_Candidate],
    truncated: NDArray[np.bool_],
    extra: dict[str, NDArray],
    tokenizer: Tokenizer | None,
) -> Part:
    names: tuple[dict[str, int], ...] = tuple({} for _ in COLUMNS)
    codes = np.empty((len(candidates), len(COLUMNS)), np.uint32)
    for idx, candidate in enumerate(candidates):
        example = candidate.example
        values = (example.source, example.language, example.format, example.topic)
        codes[idx] = [n.setdefault(v, len(n)) for n, v in zip(names, values, strict=True)]
    counts.names = [list(n) for n in names]
    licences: dict[str, int] = {}
    licence_codes = [
        licences.setdefault(candidate.example.licence, len(licences)) for candidate in candidates
    ]
    counts.licences = list(licences)
    ids = [candidate.example.id.encode() for candidate in candidates]
    dtype, unk_id = np.dtype(np.int32), None
    if tokenizer is not None:
        dtype, unk_id = optimal_dtype(tokenizer.vocab_size), tokenizer.unk_id
        _check_ids(documents, tokenizer)
    return Part(
        counts=counts,
        tokens=documents.tokens.astype(dtype),
        lengths=documents.lengths,
        span_counts=documents.span_counts,
        spans=documents.spans,
        ids=np.frombuffer(b"".join(ids), np.uint8),
        id_lengths=np.array([len(id) for id in ids], np.int32),
        codes=codes,
        licences=np.array(licence_codes, np.uint32),
        unknown=count_tokens(documents, unk_id),
        truncated=truncated,
        rows=np.array([candidate.row_idx for candidate in candidates], np.int32),
        extra=extra,
    )


def _check_ids(documents: TokenizedDocuments, tokenizer: Tokenizer) -> None:
    low, high = int(documents.tokens.min(initial=0)), int(documents.tokens.max(initial=0))
    if low < 0 or high >= tokenizer.vocab_size:
        raise DsmError(
            f"{tokenizer.path}: gives token ids {low} to {high}, and its vocabulary is"
            f" 0 to {tokenizer.vocab_size - 1}"
        )
