"""Shows documents of a tokenized dataset; what is trained on is green and underlined, and stands
in white brackets (U+27E6, U+27E7) where there is no color: on a pipe, or with NO_COLOR.

dsm inspect data/train 17
dsm inspect data/train --pack 3 --packs data/train.random-4096.packs
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from dsm_engine.data.tokenizers import Tokenizer

_SUPERVISED = "green underline"
_MARKS = ("⟦", "⟧")  # U+27E6, U+27E7: mathematics seldom has them


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="tokenized dataset")
    parser.add_argument("document", metavar="INDEX", type=int, nargs="?", default=0)
    parser.add_argument("--pack", type=int, metavar="N", help="show all documents of this pack")
    parser.add_argument("--packs", type=Path, metavar="FILE", help="the pack index of --pack")
    parser.add_argument("--tokenizer", type=Path, help="default: the one it was made with")


def run(arguments: argparse.Namespace) -> None:
    """Prints one document, or those of one pack with a rule between them."""
    from rich.text import Text

    from dsm_engine.cli.terminal import console
    from dsm_engine.data.pack_file import load_pack_index
    from dsm_engine.data.tokenized_dataset import TokenizedDataset
    from dsm_engine.data.tokenizers import dataset_tokenizer
    from dsm_engine.errors import DsmError

    dataset = TokenizedDataset(arguments.prefix)
    tokenizer = dataset_tokenizer(arguments.prefix, dataset.manifest, arguments.tokenizer)
    documents = [arguments.document]
    if arguments.pack is not None:
        if arguments.packs is None:
            raise DsmError("--pack N needs --packs FILE, the pack index that dsm pack wrote")
        packs = load_pack_index(arguments.packs)
        if not packs.matches(dataset.lengths):
            raise DsmError(f"{arguments.packs}: was built for another dataset")
        documents = [int(document) for document in packs.pack(arguments.pack)]
    show = console()
    in_color = show.color_system is not None and not show.no_color
    for document in documents:
        ids = dataset.document(document)
        attributes = dataset.attributes(document)
        spans = dataset.spans(document)
        show.rule(Text(f"document {document}: {attributes.id} ({len(ids)} tokens)"), align="left")
        marks = ("", "") if in_color else _MARKS
        show.print(_marked(ids.tolist(), spans.tolist(), tokenizer, marks))


def _marked(
    ids: list[int], spans: list[list[int]], tokenizer: "Tokenizer", marks: tuple[str, str]
) -> "Text":
    from rich.text import Text

    text, position = Text(), 0
    for start, end in spans:
        text.append(tokenizer.decode(ids[position:start], continuation=position > 0))
        eos = "<eos>" if tokenizer.eos_id in ids[start:end] else ""
        supervised = tokenizer.decode(ids[start:end], continuation=start > 0)
        text.append(f"{marks[0]}{supervised}{eos}{marks[1]}", style=_SUPERVISED)
        position = end
    text.append(tokenizer.decode(ids[position:], continuation=position > 0))
    return text
