"""The forms of a text that do not count when texts are compared.

Unicode's NFKC and case folding; superscripts and subscripts become `^` and `_` first, since x² is
not x2. Texts of common characters alone, which is nearly all, go as they are: the core folds ASCII
case, full-width punctuation and digits, curly quotes, dashes and spaces itself, and NFKC would
change nothing else.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dsm_engine.errors import DsmError

# Full-width punctuation behind a backslash or a bracket may be LaTeX once it is folded.
_UNCOMMON = re.compile(
    "[^\0-\x7f\u4e00-\u9fff\u3000-\u3002\u3008-\u3011‘’“”—−×÷±°√≈≤≥≠∠△π"
    "，．：；？！（）％＋－＝／＜＞\uff10-\uff19]"
    r"|[\\{][\uff01-\uff5e]"
)
_SUPERSCRIPT = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+")
_SUBSCRIPT = re.compile("[\u2080-\u209c]+")


def normalized(texts: Sequence[str]) -> list[str]:
    """The texts as the core compares them."""
    return [text if text.isascii() else _normalized(text) for text in texts]


@contextmanager
def whole_characters() -> Iterator[None]:
    """Within it, a text with half a character is a DsmError."""
    try:
        yield
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise DsmError(
            f"a text holds half a character (a lone surrogate) at character {error.start}:"
            f" {around!r}"
        ) from error


def _normalized(text: str) -> str:
    if not _UNCOMMON.search(text):
        return text
    text = _SUBSCRIPT.sub(r"_\g<0>", _SUPERSCRIPT.sub(r"^\g<0>", text))
    return unicodedata.normalize("NFKC", text).casefold()
