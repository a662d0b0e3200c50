"""What a word nobody knows was meant to be."""

from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """`(did you mean 'x'?)` where one known word is close, else the list of known words."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"(did you mean {close[0]!r}?)"
    return f"(known: {', '.join(sorted(known))})"
