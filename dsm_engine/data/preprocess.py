"""From sources to a tokenized dataset: read, render, tokenize, write, and account for every row."""

import base64
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from dsm_engine.data.example import Example, ExampleFault, ExampleOmitted
from dsm_engine.data.ledger import Ledger
from dsm_engine.data.recipe import PreprocessRecipe, SourceRecipe
from dsm_engine.data.sources.held_out import refuse_benchmark
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.sources.rows import Row
from dsm_engine.data.templates import Segment, Template, load_template
from dsm_engine.data.tokenized_dataset import TokenizedDatasetWriter
from dsm_engine.data.tokenizers import Tokenizer, encode_segment_lists, load_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, file_xxh3
from dsm_engine.targets import prepare_targets

_BATCH_EXAMPLES = 1024
_BATCH_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of all sources, as they lie on the disk."""


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What a preprocessing run made."""

    output: Path
    num_documents: int
    num_tokens: int
    num_supervised_tokens: int
    max_document_tokens: int
    ledger: Ledger
    encoder: str
    """`native` or `library`, the latter with its reason where it has one."""
    quarantine: Path | None
    """Where the rows that were not kept lie, under that policy."""
    num_quarantined: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    recipe: SourceRecipe
    reader: Reader
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rendered:
    row: Row
    example: Example
    segments: list[Segment]
    source: str
    """Under which the ledger counts it."""


def preprocess(recipe: PreprocessRecipe, *, progress: Progress | None = None) -> PreprocessReport:
    """Writes the dataset the recipe describes; nothing reaches its final name unless all is well.

    Raises DsmError with `file:line:byte` where the recipe's policies make a bad row an error.
    """
    tokenizer = load_tokenizer(recipe.tokenizer, bos=recipe.bos_token, eos=recipe.eos_token)
    template = load_template(recipe.template, tokenizer)
    sources = _open_sources(recipe)
    quarantine = _quarantine_path(recipe)
    prepare_targets(quarantine)
    with TokenizedDatasetWriter(recipe.output, vocab_size=tokenizer.vocab_size) as writer:
        with _quarantine_file(recipe) as rejects:
            run = _Run(recipe, template, tokenizer, writer, rejects)
            run.read(sources, progress or (lambda done, total: None))
        total = run.ledger.total
        if total.kept == 0:
            causes = ", ".join(f"{num} {cause}" for cause, num in sorted(total.dropped.items()))
            raise DsmError(f"{recipe.output}: no example is left of {total.read} rows: {causes}")
        writer.finish(**_manifest_fields(recipe, template, tokenizer, sources, run.ledger))
    if rejects is None:
        # One of an earlier run under this prefix would tell of rows that are not this dataset's.
        quarantine.unlink(missing_ok=True)
    return PreprocessReport(
        output=recipe.output,
        num_documents=total.kept,
        num_tokens=total.tokens,
        num_supervised_tokens=total.supervised_tokens,
        max_document_tokens=run.max_document_tokens,
        ledger=run.ledger,
        encoder=_encoder_line(tokenizer),
        quarantine=None if rejects is None else quarantine,
        num_quarantined=run.num_quarantined,
    )


class _Run:
    """One pass over the sources. The policies live in `_reject`, `_fit` and `_num_unknown`."""

    def __init__(
        self,
        recipe: PreprocessRecipe,
        template: Template,
        tokenizer: Tokenizer,
        writer: TokenizedDatasetWriter,
        rejects: IO[bytes] | None,
    ) -> None:
        self.ledger = Ledger()
        self.max_document_tokens = 0
        self.num_quarantined = 0
        self._recipe = recipe
        self._template = template
        self._tokenizer = tokenizer
        self._writer = writer
        self._rejects = rejects

    def read(self, sources: Sequence[_Source], progress: Progress) -> None:
        total_bytes = sum(source.num_bytes for source in sources)
        done_bytes = 0
        for source in sources:
            for batch in _batches(self._render(source)):
                self._write(batch)
                progress(done_bytes + min(batch[-1].row.position, source.num_bytes), total_bytes)
            done_bytes += source.num_bytes
            progress(done_bytes, total_bytes)

    def _render(self, source: _Source) -> Iterator[_Rendered]:
        num_rows = 0
        name = source.reader.source
        counts = self.ledger.source(name)
        for row in source.reader.rows(source.recipe.path):
            if num_rows == source.recipe.limit:
                break
            num_rows += 1
            counts.read += 1
            try:
                example = source.reader.example(row)
                segments = self._template.render(example)
            except ExampleFault as fault:
                self._reject(row, name, fault)
                continue
            yield _Rendered(row=row, example=example, segments=segments, source=name)
        if num_rows == 0:
            raise DsmError(f"{source.recipe.path}: holds no examples")

    def _write(self, batch: Sequence[_Rendered]) -> None:
        for item, (ids, spans) in zip(
            batch, _tokenize(self._tokenizer, self._template, batch), strict=True
        ):
            counts = self.ledger.source(item.source)
            try:
                fitted, fitted_spans = self._fit(ids, spans)
            except ExampleFault as fault:
                self._reject(item.row, item.source, fault)
                continue
            num_unknown = self._num_unknown(item, fitted)
            example = item.example
            self._writer.add(
                fitted,
                fitted_spans,
                id=example.id,
                source=example.source,
                language=example.language,
                format=example.format,
                topic=example.topic,
            )
            counts.kept += 1
            counts.licences[example.licence] += 1
            counts.truncated += len(fitted) < len(ids)
            counts.tokens += len(fitted)
            counts.supervised_tokens += sum(end - start for start, end in fitted_spans)
            counts.unknown_tokens += num_unknown
            self.max_document_tokens = max(self.max_document_tokens, len(fitted))

    def _fit(
        self, ids: list[int], spans: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        limit = self._recipe.max_tokens
        if len(ids) > limit:
            if self._recipe.overlong != "truncate":
                raise ExampleFault("overlong", f"{len(ids)} tokens, and the limit is {limit}")
            ids = ids[:limit]
            spans = [(start, min(end, limit)) for start, end in spans if start < limit]
        if not spans:
            raise ExampleFault("no_supervised_tokens", f"no answer within {limit} tokens")
        return ids, spans

    def _num_unknown(self, item: _Rendered, ids: list[int]) -> int:
        """The unknown tokens among the ids; ends the run at the first, where that is the policy."""
        unk_id = self._tokenizer.unk_id
        count = 0 if unk_id is None else ids.count(unk_id)
        if count and self._recipe.on_unknown == "error":
            characters = dict.fromkeys("".join(s.text for s in item.segments if not s.control))
            unknown = (c for c in characters if unk_id in self._tokenizer.encode(c))
            raise DsmError(
                f"{item.row.place}: the tokenizer has no token for {next(unknown, 'its text')!r};"
                f" on_unknown: count goes on with its unknown token"
            )
        return count

    def _reject(self, row: Row, source: str, fault: ExampleFault) -> None:
        """Counts a row that is not kept, or ends the run, as the policies say."""
        omitted = isinstance(fault, ExampleOmitted)
        overlong = fault.cause == "overlong"
        if overlong and self._recipe.overlong == "error":
            raise DsmError(f"{row.place}: {fault}; choose overlong: drop or truncate")
        if not overlong and not omitted and self._recipe.on_error == "error":
            raise DsmError(
                f"{row.place}: {fault}; on_error: skip or quarantine goes on without such rows"
            )
        if not omitted and self._rejects is not None:
            self._rejects.write(_quarantine_line(row, fault))
            self.num_quarantined += 1
        self.ledger.source(source).dropped[fault.cause] += 1


def _encoder_line(tokenizer: Tokenizer) -> str:
    reason = tokenizer.encoder_reason
    return tokenizer.encoder if reason is None else f"{tokenizer.encoder} ({reason})"


def _open_sources(recipe: PreprocessRecipe) -> list[_Source]:
    """Every source, checked before the first one is read."""
    sources = []
    for source_idx, source in enumerate(recipe.sources):
        where = f"sources.{source_idx}"
        reader = make_reader(source.reader, source=source.name, options=source.options, where=where)
        num_bytes = _checked_size(source.path, where)
        refuse_benchmark(reader, source.path, where)
        sources.append(_Source(recipe=source, reader=reader, num_bytes=num_bytes))
    return sources


def _checked_size(path: Path, where: str) -> int:
    """The file's bytes, at least one. Raises DsmError where it is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DsmError(f"{path}: no such file ({where})") from error
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error} ({where})") from error
    if stat.S_ISDIR(status.st_mode):
        raise DsmError(f"{path}: is a folder; a source is one file ({where})")
    if not stat.S_ISREG(status.st_mode):
        raise DsmError(f"{path}: is no regular file; a source is read twice ({where})")
    if status.st_size == 0:
        raise DsmError(f"{path}: is empty ({where})")
    return status.st_size


def _batches(items: Iterator[_Rendered]) -> Iterator[list[_Rendered]]:
    batch: list[_Rendered] = []
    num_bytes = 0
    for item in items:
        batch.append(item)
        num_bytes += len(item.row.raw)
        if len(batch) >= _BATCH_EXAMPLES or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _tokenize(
    tokenizer: Tokenizer, template: Template, batch: Sequence[_Rendered]
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """For each item its ids, BOS and EOS included, and the spans of ids that are supervised."""
    encoded = encode_segment_lists(tokenizer, [item.segments for item in batch])
    for item, parts in zip(batch, encoded, strict=True):
        ids = [tokenizer.bos_id] if template.adds_bos and tokenizer.bos_id is not None else []
        spans: list[tuple[int, int]] = []
        for segment, part in zip(item.segments, parts, strict=True):
            start = len(ids)
            ids += part
            if segment.supervised and part:
                _append_span(spans, start, len(ids))
        if template.adds_eos:
            ids.append(tokenizer.eos_id)
            _append_span(spans, len(ids) - 1, len(ids))
        yield ids, spans


def _append_span(spans: list[tuple[int, int]], start: int, end: int) -> None:
    if spans and spans[-1][1] == start:
        start = spans.pop()[0]
    spans.append((start, end))


def _manifest_fields(
    recipe: PreprocessRecipe,
    template: Template,
    tokenizer: Tokenizer,
    sources: Sequence[_Source],
    ledger: Ledger,
) -> dict[str, Any]:
    return {
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "encoder": tokenizer.encoder,
        },
        "template": {"name": template.name, "fingerprint": template.fingerprint},
        "inputs": [
            {
                "path": str(source.recipe.path),
                "size": source.num_bytes,
                "xxh3": file_xxh3(source.recipe.path),
            }
            for source in sources
        ],
        "recipe": recipe.model_dump(mode="json"),
        "ledger": ledger.as_dict(),
    }


def _quarantine_path(recipe: PreprocessRecipe) -> Path:
    return recipe.output.with_name(recipe.output.name + ".quarantine.jsonl")


@contextmanager
def _quarantine_file(recipe: PreprocessRecipe) -> Iterator[IO[bytes] | None]:
    wanted = recipe.on_error == "quarantine"
    with atomic_file(_quarantine_path(recipe)) if wanted else nullcontext() as file:
        yield file


def _quarantine_line(row: Row, fault: ExampleFault) -> bytes:
    """Where the row stood, why it is here, and the row: as text, or in base64 where it is none."""
    entry: dict[str, Any] = {
        "path": str(row.path),
        "line": row.line,
        "byte": row.byte,
        "cause": fault.cause,
        "reason": str(fault),
    }
    try:
        entry["row"] = row.raw.decode()
    except UnicodeDecodeError:
        entry["row_base64"] = base64.b64encode(row.raw).decode()
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
