"""SentencePiece and Hugging Face tokenizers behind one interface, safe for foreign text.

Three promises the libraries alone do not make: text never becomes a control id, whatever it holds;
a segment that continues a text is encoded without the space some models put before a text; nothing
is cut, padded or sampled.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dsm_engine.errors import DsmError

if TYPE_CHECKING:  # NumPy is not imported here: see early_load
    from dsm_engine.data.segments import Segment
    from dsm_engine.data.tokenizers.flat_ids import FlatIds


class Tokenizer(Protocol):
    """Text to ids and back. Neither direction adds or shows BOS and EOS."""

    @property
    def kind(self) -> str:
        """`sentencepiece` or `huggingface`."""
        ...

    @property
    def path(self) -> Path:
        """The model file."""
        ...

    @property
    def fingerprint(self) -> str:
        """The 64-bit XXH3 of the model file, 16 hexadecimal digits."""
        ...

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def unk_id(self) -> int | None:
        """What text without a token becomes; None where every text has its tokens."""
        ...

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes of UTF-8 that the model has no token for, and that its library drops from text
        without a word; empty for most. `flat_ids.texts_holding` finds the texts."""
        ...

    @property
    def controls(self) -> Mapping[str, int]:
        """The control tokens: what they are called, and their ids."""
        ...

    @property
    def begins_after_control(self) -> bool:
        """Whether text behind a control token is encoded as the beginning of a text, which some
        models of the library do, and not as its continuation."""
        ...

    @property
    def encoder(self) -> str:
        """What turns texts into ids in `encode_flat`, the same in all cases.

        `native` is our core, for SentencePiece; `fastokens` a faster library, for tokenizer.json;
        `library` the one that defines the ids.
        """
        ...

    @property
    def encoder_reason(self) -> str | None:
        """Why it is `library`, where it is."""
        ...

    def control_id(self, name: str) -> int | None:
        """The id of the control token called so, or None. Raises DsmError where text beside that
        token would be swallowed."""
        ...

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        """The ids of `text`; `continuation` says that text precedes it (see `encode_segments`)."""
        ...

    def encode_batch(
        self, texts: Sequence[str], *, continuation: bool = False
    ) -> list[list[int]]: ...

    def encode_flat(
        self, texts: Sequence[str], *, continuation: bool = False, threads: int = 1
    ) -> "FlatIds":
        """The ids of all texts in a row, [total], and where those of each begin, [n + 1].

        For many texts: `native` and `fastokens` run on `threads` threads, without the GIL and
        without a Python object an id. The ids do not depend on the threads. Both may be forked,
        while no other thread encodes. Raises DsmError where a text holds half a character.
        """
        ...

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        """The text of `ids`, control ids left out; a continuation keeps its leading space."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `folder` needs for `load_tokenizer(folder)` to give this tokenizer again,
        BOS and EOS included, under the names transformers looks for."""
        ...


def load_tokenizer(
    path: Path, *, bos: str | None = None, eos: str | None = None, bulk: bool = False
) -> Tokenizer:
    """The tokenizer in a tokenizer.model or tokenizer.json file, or in a folder that holds one.

    `bos` and `eos` name the control tokens of a tokenizer.json; without them
    tokenizer_config.json beside it does, then well-known names. `bulk` says that many texts will
    be encoded: the fast encoder of a tokenizer.json is then loaded at once, `encode_batch` goes
    through it too, and the library is loaded only for what is not remembered of the file (see
    `known_facts`). Raises DsmError.
    """
    file = _model_file(path)
    if file.suffix == ".json":
        from dsm_engine.data.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(file, bos=bos, eos=eos, bulk=bulk)
    if bos or eos:
        raise DsmError(f"{file}: BOS and EOS of a SentencePiece model stand in the model itself")
    from dsm_engine.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer(file)


def dataset_tokenizer(
    prefix: Path, manifest: dict[str, Any], path: Path | None = None
) -> Tokenizer:
    """The tokenizer a dataset was made with, from `path` or from where its manifest says.

    Raises DsmError where it is another one, by its file or by its BOS and EOS.
    """
    made_with, recipe = manifest.get("tokenizer", {}), manifest.get("recipe", {})
    where = path or recipe.get("tokenizer")
    if where is None:
        raise DsmError(f"{prefix}: its manifest names no tokenizer; give its path")
    tokenizer = load_tokenizer(
        Path(where), bos=recipe.get("bos_token"), eos=recipe.get("eos_token")
    )
    for key in ("fingerprint", "bos_id", "eos_id"):
        theirs, ours = made_with.get(key), getattr(tokenizer, key)
        if theirs != ours:
            raise DsmError(
                f"{prefix}: was tokenized with another tokenizer ({key} {theirs}) than "
                f"{tokenizer.path} ({key} {ours}); preprocess it again, or give the tokenizer it "
                f"was made with"
            )
    return tokenizer


def encode_segments(tokenizer: Tokenizer, segments: Sequence["Segment"]) -> list[list[int]]:
    """The ids of each segment of one text, as preprocessing and evaluation both encode them.

    The first is the beginning of a text, the others are continuations; see `begins_after_control`
    for those behind a control token.
    """
    encoded: list[list[int]] = []
    continues = False
    for segment in segments:
        if segment.control:
            encoded.append([known_control_id(tokenizer, segment.text)])
            continues = not tokenizer.begins_after_control
        else:
            encoded.append(tokenizer.encode(segment.text, continuation=continues))
            continues = True
    return encoded


def encode_prompt(
    tokenizer: Tokenizer, segments: Sequence["Segment"], *, add_bos: bool = True
) -> list[int]:
    """BOS, where it is to be added and the tokenizer has one, and the ids of the segments."""
    bos = [tokenizer.bos_id] if add_bos and tokenizer.bos_id is not None else []
    return bos + [token for ids in encode_segments(tokenizer, segments) for token in ids]


def known_control_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of a control token. Raises DsmError where there is none of the name."""
    token = tokenizer.control_id(name)
    if token is None:
        raise DsmError(f"{tokenizer.path}: has no control token {name!r}")
    return token


def train_sentencepiece(
    texts: Iterable[str], *, path: Path, vocab_size: int, symbols: Sequence[str] = ()
) -> None:
    """Trains a BPE model that decodes to exactly what it encoded, and publishes it at `path`.

    Args:
        texts: What it learns from; any length, newlines included.
        path: The .model file.
        vocab_size: Pieces in all. Where the bytes of unseen characters fit beside the rest (no
            more than a half is spent on them and on the symbols), they get a piece each.
        symbols: Strings that are always one piece, even when user text holds them.

    The same texts give the same bytes. Raises DsmError where the size does not suit the texts.
    """
    from dsm_engine.data.tokenizers.sentencepiece_tokenizer import train

    train(texts, path=path, vocab_size=vocab_size, symbols=symbols)


def _model_file(path: Path) -> Path:
    try:
        found = path.exists()
    except OSError as error:
        raise DsmError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DsmError(
            f"{path}: no tokenizer there; give a tokenizer.model, a tokenizer.json or a folder"
        )
    if not path.is_dir():
        return path
    for name in ("tokenizer.model", "tokenizer.json"):
        if (path / name).is_file():
            return path / name
    raise DsmError(f"{path}: holds neither tokenizer.model nor tokenizer.json")
