"""From a tokenized dataset and its manifest to the content of its card."""

from collections import Counter
from typing import Any

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray

from dsm_engine.data.card.content import (
    Card,
    CardSection,
    Cell,
    Code,
    Histogram,
    Sample,
    Table,
)
from dsm_engine.data.inspection import show_document
from dsm_engine.data.pack_index import STRATEGIES, build_pack_index
from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.errors import DsmError

_MAX_BINS = 24
_MAX_ROWS = 30  # of a table by topic; the others are one row
_PERCENTILES = (5, 25, 50, 75, 95, 99)
_PACK_SEED = 1234  # the default of dsm pack
# What a section of its own shows; what else stands in the manifest is shown as it is.
_KNOWN_KEYS = {
    "format_version", "documents", "tokens", "supervised_tokens", "vocab_size", "dtype",
    "chunk_bytes", "files", "manifest_xxh3", "tokenizer", "template", "inputs", "recipe", "ledger",
}  # fmt: skip
_HUB_LICENCES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0"}
_HUB_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def collect_card(
    dataset: TokenizedDataset, tokenizer: Tokenizer | None, *, capacity: int, num_samples: int
) -> Card:
    """The card of a dataset; without samples it needs no tokenizer.

    Raises DsmError where the dataset is empty or one of its tables is damaged.
    """
    if dataset.num_documents == 0:
        raise DsmError(f"{dataset.prefix}: holds no documents to show")
    dataset.check_tables()
    manifest = dataset.manifest
    lengths = dataset.lengths
    supervised = _supervised(dataset)
    sections = [
        CardSection(title="Composition", parts=_composition(dataset, lengths, supervised)),
        CardSection(title="Lengths", parts=_lengths(lengths, supervised)),
        CardSection(title="Packing", parts=[_packing(lengths, capacity)]),
        CardSection(title="Ledger", text=_LEDGER_TEXT, parts=_ledger(manifest)),
        *_further(manifest),
        CardSection(title="Licences", parts=[_licences(manifest)]),
        CardSection(title="Provenance", parts=_provenance(manifest)),
        CardSection(title="How to reproduce", text=_REPRODUCE_TEXT, parts=[_recipe(manifest)]),
    ]
    if num_samples:
        assert tokenizer is not None
        parts = [
            Sample(view=show_document(dataset, tokenizer, document_idx))
            for document_idx in _samples(dataset, lengths, num_samples)
        ]
        sections.insert(3, CardSection(title="Samples", text=_SAMPLES_TEXT, parts=[*parts]))
    return Card(
        name=dataset.prefix.name,
        facts=_facts(dataset, lengths),
        sections=[section for section in sections if section.parts],
        front_matter=_front_matter(dataset),
    )


_LEDGER_TEXT = "What became of every row of the sources: read = kept + dropped."
_SAMPLES_TEXT = "Documents of middle length, as the model reads them; what is trained on is marked."
_REPRODUCE_TEXT = "Save the recipe as recipe.yaml, then: dsm preprocess recipe.yaml"


def _supervised(dataset: TokenizedDataset) -> NDArray[np.int64]:
    """Tokens of each document that are some position's label, [num_documents]."""
    spans = dataset.span_table.spans
    counts = spans[:, 1].astype(np.int64) - np.maximum(spans[:, 0], 1)
    before = np.concatenate(([0], np.cumsum(counts)))[dataset.span_table.offsets]
    return np.diff(before)


def _facts(dataset: TokenizedDataset, lengths: NDArray[np.int32]) -> list[tuple[str, Cell]]:
    share = dataset.num_supervised / dataset.num_tokens
    return [
        ("documents", dataset.num_documents),
        ("tokens", dataset.num_tokens),
        ("supervised tokens", dataset.num_supervised),
        ("supervised share", f"{share:.1%}"),
        ("tokens a document, mean", f"{lengths.mean():,.1f}"),
        ("longest document", int(lengths.max())),
        ("vocabulary", dataset.vocab_size),
    ]


def _composition(
    dataset: TokenizedDataset, lengths: NDArray[np.int32], supervised: NDArray[np.int64]
) -> list[Any]:
    tables = []
    for column in COLUMNS:
        names, codes = dataset.attribute_table.column(column)
        sums = [
            np.bincount(codes, weights=weights, minlength=len(names)).astype(np.int64)
            for weights in (None, lengths, supervised)
        ]
        if column == "topic" and names == [""]:
            continue
        tables.append(_by_value(column, names, *sums))
    return tables


def _by_value(
    column: str,
    names: list[str],
    documents: NDArray[np.int64],
    tokens: NDArray[np.int64],
    supervised: NDArray[np.int64],
) -> Table:
    """Most tokens first; the names decide between equals."""
    order = sorted(range(len(names)), key=lambda i: (-tokens[i], names[i]))
    counts = np.stack([documents, tokens, supervised], axis=1)
    rows = [(names[i] or f"(no {column})", counts[i]) for i in order[:_MAX_ROWS]]
    if rest := order[_MAX_ROWS:]:
        rows.append((f"({len(rest):,} others)", counts[rest].sum(axis=0)))
    total, most = int(tokens.sum()), max(int(count[1]) for _, count in rows)
    return Table(
        title=f"By {column}",
        columns=(column, "documents", "tokens", "share", "supervised", "tokens a document"),
        rows=[
            (
                name,
                int(count[0]),
                int(count[1]),
                f"{count[1] / total:.1%}",
                f"{count[2] / count[1]:.1%}",
                f"{count[1] / count[0]:,.1f}",
            )
            for name, count in rows
        ],
        shares=[int(count[1]) / most for _, count in rows],
    )


def _lengths(lengths: NDArray[np.int32], supervised: NDArray[np.int64]) -> list[Any]:
    rows: list[tuple[Cell, ...]] = []
    for name, values in (("tokens", lengths), ("supervised tokens", supervised)):
        points = np.percentile(values, _PERCENTILES, method="lower")
        ends = int(values.min()), int(values.max())
        rows.append((name, ends[0], *(int(point) for point in points), ends[1]))
    columns = ("", "shortest", *(f"{p}%" if p != 50 else "median" for p in _PERCENTILES), "longest")
    return [
        _histogram("Tokens a document", lengths),
        _histogram("Supervised tokens a document", supervised),
        Table(title="Percentiles", columns=columns, rows=rows),
    ]


def _histogram(title: str, values: NDArray[Any]) -> Histogram:
    """Bins of a round width that hold 99% of the values; what is longer is in the last."""
    width = _round_up(-(-(int(np.percentile(values, 99, method="lower")) + 1) // (_MAX_BINS - 1)))
    num_bins = min(int(values.max()) // width + 1, _MAX_BINS)
    counts = np.bincount(np.minimum(values // width, num_bins - 1), minlength=num_bins)
    labels = [f"{i * width:,} to {(i + 1) * width - 1:,}" for i in range(num_bins)]
    if values.max() >= num_bins * width:
        labels[-1] = f"{(num_bins - 1) * width:,} or more"
    return Histogram(title=title, unit="documents", labels=labels, counts=counts.tolist())


def _round_up(value: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, ... that is not below the value."""
    power = 10 ** (len(str(value)) - 1)
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value)


def _packing(lengths: NDArray[np.int32], capacity: int) -> Table:
    if capacity < 1:
        raise DsmError(f"capacity: the tokens of a pack are 1 or more, found {capacity}")
    rows: list[tuple[Cell, ...]] = []
    shares: list[float] = []
    short = lengths[lengths <= capacity]
    if len(short):
        shares.append(int(short.sum(dtype=np.int64)) / (len(short) * capacity))
        rows.append(("none: one document a row", len(short), f"{shares[-1]:.2%}", "1.0"))
    for strategy in STRATEGIES:
        packs = build_pack_index(
            lengths, capacity=capacity, strategy=strategy, seed=_PACK_SEED, overlong="drop"
        )
        if packs.num_packs == 0:
            continue
        statistics = packs.statistics(lengths)
        shares.append(statistics.fill)
        mean = f"{statistics.documents_per_pack_mean:.1f}"
        rows.append((strategy, statistics.num_packs, f"{statistics.fill:.2%}", mean))
    num_long = len(lengths) - len(short)
    note = f"{num_long:,} documents are longer than a pack; only concat_split, which cuts them, has"
    return Table(
        title=f"Fill of packs of {capacity:,} tokens",
        columns=("strategy", "packs", "fill", "documents a pack"),
        rows=rows,
        shares=shares,
        note=f"{note} them." if num_long else "",
    )


def _ledger(manifest: dict[str, Any]) -> list[Any]:
    ledger = manifest.get("ledger", {})
    sources: dict[str, dict[str, Any]] = dict(ledger.get("sources", {}))
    keys = dict.fromkeys(key for counts in sources.values() for key in counts)
    if len(sources) > 1:
        sources["all sources"] = {key: ledger[key] for key in keys if key in ledger}
    nested = [
        key for key in keys if any(_is_nested(counts.get(key)) for counts in sources.values())
    ]
    parts = _tables(
        "By source",
        {
            name: {key: value for key, value in counts.items() if key not in nested}
            for name, counts in sources.items()
        },
    )
    for key in nested:
        if key != "licences":  # they have a section
            by_source = {name: counts.get(key, {}) for name, counts in sources.items()}
            parts += _tables(f"{_title(key)}, by source", by_source)
    further = {key: value for key, value in ledger.items() if key not in {*keys, "sources"}}
    plain = {key: value for key, value in further.items() if not _is_nested(value)}
    parts += _tables("Further counts", plain)
    for key, value in further.items():
        if key not in plain:
            parts += _tables(_title(key), value)
    return parts


def _further(manifest: dict[str, Any]) -> list[CardSection]:
    """What else stands in the manifest: tables where it has the shape of one."""
    return [
        CardSection(title=_title(key), parts=[*_tables("", value)])
        for key, value in manifest.items()
        if key not in _KNOWN_KEYS
    ]


def _licences(manifest: dict[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (source, licence or "(not known)", count)
        for source, licences in _licences_by_source(manifest).items()
        for licence, count in sorted(licences.items())
    ]
    columns = ("source", "licence", "documents")
    return Table(title="By source", columns=columns, rows=rows)


def _licences_by_source(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
    sources = manifest.get("ledger", {}).get("sources", {})
    return {
        name: counts.get("licences") or {"": counts["kept"]}
        for name, counts in sources.items()
        if counts.get("kept")
    }


def _provenance(manifest: dict[str, Any]) -> list[Any]:
    files = {
        suffix: {"bytes": file["bytes"], "xxh3": file["xxh3"]}
        for suffix, file in manifest["files"].items()
    }
    return [
        *_tables("Inputs", manifest.get("inputs", [])),
        *_tables("Tokenizer", manifest.get("tokenizer", {})),
        *_tables("Template", manifest.get("template", {})),
        *_tables("Files", files),
    ]


def _recipe(manifest: dict[str, Any]) -> Code:
    text = yaml.safe_dump(manifest.get("recipe", {}), sort_keys=False, allow_unicode=True)
    return Code(title="Recipe", text=text, language="yaml")


def _samples(dataset: TokenizedDataset, lengths: NDArray[np.int32], num_samples: int) -> list[int]:
    """Documents of middle length, of each format and language in turn, the commonest first."""
    formats, format_codes = dataset.attribute_table.column("format")
    _, language_codes = dataset.attribute_table.column("language")
    groups = language_codes.astype(np.int64) * len(formats) + format_codes
    values, counts = np.unique(groups, return_counts=True)
    queues = []
    for value in values[np.argsort(-counts, kind="stable")]:
        members = np.flatnonzero(groups == value)
        by_length = members[np.argsort(lengths[members], kind="stable")]
        queues.append(np.roll(by_length, -(len(by_length) // 2)).tolist())
    chosen: list[int] = []
    while len(chosen) < min(num_samples, dataset.num_documents):
        queues = [queue for queue in queues if queue]
        chosen += [queue.pop(0) for queue in queues]
    return chosen[:num_samples]


def _front_matter(dataset: TokenizedDataset) -> dict[str, Any]:
    languages, _ = dataset.attribute_table.column("language")
    size = next((name for end, name in _HUB_SIZES if dataset.num_documents < end), "n>1M")
    return {
        "pretty_name": dataset.prefix.name,
        "language": sorted(languages),
        "license": _hub_licences(dataset.manifest),
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["mathematics", "instruction-tuning"],
    }


def _hub_licences(manifest: dict[str, Any]) -> list[str]:
    counts: Counter[str] = Counter()
    for licences in _licences_by_source(manifest).values():
        counts.update(licences)
    return sorted({_hub_licence(licence) for licence in counts})


def _hub_licence(licence: str) -> str:
    if not licence:
        return "unknown"
    return licence.lower() if licence.lower() in _HUB_LICENCES else "other"


def _tables(title: str, value: Any) -> list[Any]:
    """Whatever stands in a manifest as a table, or as several; nothing where it is empty."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        columns = tuple(dict.fromkeys(key for row in value for key in row))
        rows = [tuple(_cell(row.get(column, "")) for column in columns) for row in value]
        return [Table(title=title, columns=columns, rows=rows)]
    if not isinstance(value, dict):
        return [] if value in (None, []) else [_pairs(title, {"value": value})]
    if value and all(isinstance(row, dict) for row in value.values()):
        columns = tuple(dict.fromkeys(key for row in value.values() for key in row))
        if not columns:
            return []
        rows = [
            (name, *(_cell(row.get(column, "")) for column in columns))
            for name, row in value.items()
        ]
        return [Table(title=title, columns=("", *columns), rows=rows)]
    return [_pairs(title, value)] if value else []


def _pairs(title: str, value: dict[str, Any]) -> Table:
    return Table(title=title, columns=("", ""), rows=[(k, _cell(v)) for k, v in value.items()])


def _cell(value: Any) -> Cell:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return orjson.dumps(value).decode()


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()
