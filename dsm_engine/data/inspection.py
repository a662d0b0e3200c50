"""Documents and packs as they are shown: stretches of text, with what is known of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsm_engine.data.pack_file import is_pack_index
from dsm_engine.data.pack_index import PackIndex
from dsm_engine.data.sidecars import COLUMNS, DocumentAttributes
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.recipes import nearest

_MAX_CHARACTER_TOKENS = 8
_UNFINISHED = "\ufffd"  # what decoders write for the bytes of a character that are no whole one


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A stretch of tokens that are alike, as text."""

    text: str
    """Of a control token: its name."""
    supervised: bool
    control: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentView:
    """One document, or the piece of it that stands in a pack."""

    document_idx: int
    attributes: DocumentAttributes
    document_tokens: int
    """Of the whole document."""
    begin: int
    """The piece is the document's tokens [begin, begin + num_tokens)."""
    num_tokens: int
    num_spans: int
    """Supervised spans in the piece."""
    num_supervised: int
    """Tokens in these spans."""
    runs: tuple[Run, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the piece is not the whole document."""
        return self.num_tokens < self.document_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPiece:
    """The part of a document that stands in a pack."""

    document_idx: int
    begin: int
    """First token of the document that stands here."""
    num_tokens: int
    offset: int
    """The slot of the pack where it begins."""
    slots: int
    """Tokens and the padding of alignment."""


def show_document(
    dataset: TokenizedDataset,
    tokenizer: Tokenizer,
    document_idx: int,
    *,
    begin: int = 0,
    num_tokens: int | None = None,
    by_token: bool = False,
) -> DocumentView:
    """The document's tokens [begin, begin + num_tokens), all of them by default.

    `by_token` gives every token a run of its own; tokens that are one character together share one.
    """
    ids = dataset.document(document_idx)
    end = len(ids) if num_tokens is None else begin + num_tokens
    spans = np.clip(dataset.spans(document_idx), begin, end) - begin
    spans = spans[spans[:, 0] < spans[:, 1]]
    supervised = np.zeros(end - begin, bool)
    for span_begin, span_end in spans.tolist():
        supervised[span_begin:span_end] = True
    runs = _runs(ids[begin:end].tolist(), supervised, tokenizer, begins=begin == 0)
    return DocumentView(
        document_idx=document_idx,
        attributes=dataset.attributes(document_idx),
        document_tokens=len(ids),
        begin=begin,
        num_tokens=end - begin,
        num_spans=len(spans),
        num_supervised=int(supervised.sum()),
        runs=tuple(_texts(runs, tokenizer, by_token=by_token)),
    )


def pack_pieces(packs: PackIndex, lengths: NDArray[np.int32], pack_idx: int) -> list[PackPiece]:
    """What stands in a pack, in order; `lengths` are those the index was built from."""
    pieces: list[PackPiece] = []
    used = 0
    begin = 0 if packs.begins is None else int(packs.begins[pack_idx])
    for document in packs.pack(pack_idx).tolist():
        room = packs.capacity - used
        num_tokens = min(int(lengths[document]) - begin, room)
        slots = min(-(-num_tokens // packs.alignment) * packs.alignment, room)
        pieces.append(
            PackPiece(
                document_idx=document,
                begin=begin,
                num_tokens=num_tokens,
                offset=used,
                slots=slots,
            )
        )
        used += slots
        begin = 0
    return pieces


def find_pack_index(prefix: Path) -> Path:
    """The pack index beside a dataset. Raises DsmError where there is none, or several."""
    try:
        names = prefix.parent.glob("*.packs")
        found = sorted(
            path
            for path in names
            if path.name.startswith(f"{prefix.name}.") and is_pack_index(path)
        )
    except OSError as error:
        raise DsmError(f"{prefix.parent}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DsmError(
            f"{prefix}: no pack index beside it (PREFIX.*.packs): dsm pack {prefix} makes one, or "
            "give --packs FILE"
        )
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise DsmError(f"{prefix}: has several pack indexes; choose one by --packs FILE: {listed}")
    return found[0]


def select_documents(
    dataset: TokenizedDataset, *, id: str | None = None, **values: str | None
) -> NDArray[np.int64]:
    """The numbers of the documents with this id and these values of columns (`source`, ...).

    Raises DsmError where there are none.
    """
    chosen = np.ones(dataset.num_documents, bool)
    for column, value in values.items():
        assert column in COLUMNS, column
        if value is None:
            continue
        names, codes = dataset.attribute_table.column(column)
        if value not in names:
            raise DsmError(f"{dataset.prefix}: no {column} {value!r} {nearest(value, names)}")
        chosen &= codes == names.index(value)
    found = np.flatnonzero(chosen)
    if id is not None:
        table = dataset.attribute_table
        same = [table.document(int(document_idx)).id == id for document_idx in found]
        found = found[np.array(same, bool)]
    if not len(found):
        raise DsmError(f"{dataset.prefix}: no document with {_asked(id, values)}")
    return found


def _asked(id: str | None, values: dict[str, str | None]) -> str:
    asked = {"id": id} | values
    return ", ".join(f"{name} {value!r}" for name, value in asked.items() if value is not None)


@dataclass(frozen=True, slots=True)
class _TokenRun:
    ids: list[int]
    supervised: bool
    control: str | None
    """The name of the one control token."""
    continues: bool
    """Whether it is decoded as the continuation of a text."""


def _runs(
    ids: list[int], supervised: NDArray[Any], tokenizer: Tokenizer, *, begins: bool
) -> Iterator[_TokenRun]:
    """The ids cut where supervision changes and around control tokens."""
    names = {token: name for name, token in tokenizer.controls.items()}
    continues, start = not begins, 0
    for position in range(1, len(ids) + 1):
        control = names.get(ids[start])
        if (
            position < len(ids)
            and control is None
            and ids[position] not in names
            and supervised[position] == supervised[start]
        ):
            continue
        yield _TokenRun(ids[start:position], bool(supervised[start]), control, continues)
        continues = control is None or not tokenizer.begins_after_control
        start = position


def _texts(runs: Iterator[_TokenRun], tokenizer: Tokenizer, *, by_token: bool) -> Iterator[Run]:
    for run in runs:
        if run.control is not None:
            yield Run(text=run.control, supervised=run.supervised, control=True)
            continue
        continues = run.continues
        for ids in _characters(run.ids, tokenizer) if by_token else [run.ids]:
            text = tokenizer.decode(ids, continuation=continues)
            yield Run(text=text, supervised=run.supervised)
            continues = True


def _characters(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids one by one, those together that are bytes of one character."""
    group: list[int] = []
    for token in ids:
        group.append(token)
        unfinished = tokenizer.decode(group, continuation=True).endswith(_UNFINISHED)
        if not unfinished or len(group) == _MAX_CHARACTER_TOKENS:
            yield group
            group = []
    if group:
        yield group
