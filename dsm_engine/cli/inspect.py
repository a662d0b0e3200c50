"""Shows documents of a tokenized dataset; what is trained on is green and underlined, and stands
in white brackets (U+27E6, U+27E7) where there is no color: on a pipe, or with NO_COLOR. Control
tokens stand by their names, control characters but tab and newline as \\x1b.

dsm inspect data/train 17
dsm inspect data/train --find gsm8k-3f2a --tokens
dsm inspect data/train 5 --source math --topic Algebra
dsm inspect data/train --pack 3
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from dsm_engine.data.inspection import DocumentView, PackPiece, Run
    from dsm_engine.data.pack_index import PackIndex

_SUPERVISED = "green underline"
_CONTROL = "magenta"
_MARKS = ("⟦", "⟧")  # U+27E6, U+27E7: mathematics seldom has them
_TOKEN_BOUNDARY = "│"  # U+2502
_CONTROL_CHARACTERS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from dsm_engine.data.sidecars import COLUMNS

    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")
    parser.add_argument(
        "index",
        metavar="INDEX",
        type=int,
        nargs="?",
        help="which document, of those that are left by the options below (the first)",
    )
    parser.add_argument("--find", metavar="ID", help="documents with this id")
    for column in COLUMNS:
        parser.add_argument(f"--{column}", help=f"documents of this {column}")
    parser.add_argument("--pack", type=int, metavar="N", help="show all documents of this pack")
    parser.add_argument(
        "--packs", type=Path, metavar="FILE", help="the pack index (the one beside PREFIX)"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="draw the boundaries of tokens (U+2502)"
    )
    parser.add_argument("--tokenizer", type=Path, help="default: the one it was made with")


def run(arguments: argparse.Namespace) -> None:
    """Prints one document, or those of one pack with a rule before each."""
    from dsm_engine.cli.terminal import console
    from dsm_engine.data.inspection import (
        find_pack_index,
        pack_pieces,
        select_documents,
        show_document,
    )
    from dsm_engine.data.pack_file import load_pack_index
    from dsm_engine.data.sidecars import COLUMNS
    from dsm_engine.data.tokenized_dataset import TokenizedDataset
    from dsm_engine.data.tokenizers import dataset_tokenizer
    from dsm_engine.errors import DsmError

    prefix, index = arguments.prefix, arguments.index
    columns = {column: getattr(arguments, column) for column in COLUMNS}
    chooses = any(value is not None for value in (arguments.find, *columns.values()))
    if arguments.pack is not None and (chooses or index is not None):
        raise DsmError("--pack N shows a whole pack: leave INDEX and the choice of documents out")
    dataset = TokenizedDataset(prefix)
    tokenizer = dataset_tokenizer(prefix, dataset.manifest, arguments.tokenizer)
    show = console()
    in_color = show.color_system is not None and not show.no_color
    by_token = arguments.tokens
    if arguments.pack is None:
        document_idx, note = index or 0, ""
        if chooses:
            found = select_documents(dataset, id=arguments.find, **columns)
            if not 0 <= document_idx < len(found):
                raise DsmError(f"{prefix}: {len(found)} documents match, asked for {document_idx}")
            note = f", {document_idx} of the {len(found)} that match"
            document_idx = int(found[document_idx])
        view = show_document(dataset, tokenizer, document_idx, by_token=by_token)
        show.rule(_title(view, note), align="left")
        show.print(_facts(view))
        show.print(_marked(view.runs, in_color=in_color, by_token=by_token))
        return
    path = arguments.packs or find_pack_index(prefix)
    packs = load_pack_index(path)
    if not packs.matches(dataset.lengths):
        raise DsmError(f"{path}: was built for another dataset")
    pieces = pack_pieces(packs, dataset.lengths, arguments.pack)
    show.print(_pack_line(packs, arguments.pack, pieces), markup=False)
    for piece in pieces:
        view = show_document(
            dataset,
            tokenizer,
            piece.document_idx,
            begin=piece.begin,
            num_tokens=piece.num_tokens,
            by_token=by_token,
        )
        show.rule(_title(view), align="left")
        show.print(_facts(view, _place(piece)))
        show.print(_marked(view.runs, in_color=in_color, by_token=by_token))
    used = sum(piece.slots for piece in pieces)
    if used < packs.capacity:
        show.rule(f"padding: slots {used:,} to {packs.capacity:,}", align="left")


def _title(view: "DocumentView", note: str = "") -> "Text":
    from rich.text import Text

    tokens = f"{view.num_tokens} tokens"
    if view.is_cut:
        end = view.begin + view.num_tokens
        tokens = f"tokens {view.begin} to {end} of {view.document_tokens}"
        tokens += ", goes on" if end < view.document_tokens else ", the end"
    return Text(f"document {view.document_idx}: {_shown(view.attributes.id)} ({tokens}{note})")


def _facts(view: "DocumentView", place: str = "") -> "Text":
    from rich.text import Text

    attributes = view.attributes
    named = {
        "source": attributes.source,
        "language": attributes.language,
        "format": attributes.format,
        "topic": attributes.topic,
    }
    known = _shown(", ".join(f"{name} {value}" for name, value in named.items() if value))
    spans = "span" if view.num_spans == 1 else "spans"
    return Text(
        f"{known}; {view.num_supervised} of {view.num_tokens} tokens supervised in "
        f"{view.num_spans} {spans}{place}",
        style="dim",
    )


def _place(piece: "PackPiece") -> str:
    padding = piece.slots - piece.num_tokens
    behind = f", {padding} of padding behind it" if padding else ""
    return f"; slots {piece.offset:,} to {piece.offset + piece.slots:,}{behind}"


def _pack_line(packs: "PackIndex", pack_idx: int, pieces: "list[PackPiece]") -> str:
    num_tokens = sum(piece.num_tokens for piece in pieces)
    documents = "document" if len(pieces) == 1 else "documents"
    aligned = f", alignment {packs.alignment}" if packs.alignment > 1 else ""
    return (
        f"pack {pack_idx} of {packs.num_packs:,} ({packs.strategy}, capacity {packs.capacity:,}"
        f"{aligned}): {len(pieces)} {documents}, {num_tokens:,} tokens, fill "
        f"{num_tokens / packs.capacity:.1%}"
    )


def _shown(text: str) -> str:
    """Without control characters (C0, DEL, C1), which a terminal would take for commands."""
    return text.translate(_CONTROL_CHARACTERS)


def _marked(runs: "tuple[Run, ...]", *, in_color: bool, by_token: bool) -> "Text":
    from rich.text import Text

    text, opens, supervised = Text(), True, False
    for run in runs:
        if run.supervised != supervised and not in_color:
            text.append(_MARKS[1] if supervised else _MARKS[0])
        elif by_token and not opens:
            text.append(_TOKEN_BOUNDARY, style="dim red")
        style = _SUPERVISED if run.supervised else ""
        style = f"{style} {_CONTROL}".strip() if run.control else style
        text.append(_shown(run.text), style=style)
        opens, supervised = False, run.supervised
    if supervised and not in_color:
        text.append(_MARKS[1])
    return text
