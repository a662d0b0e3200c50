"""Final answers, as solutions state them."""

import re

_BOXED = ("\\boxed{", "\\fbox{")
_STATED = re.compile(r"[Tt]he answer is:?[ \t]*(?P<answer>[^\n]+?)[ \t]*\.?\s*\Z")


def last_boxed(text: str) -> str:
    r"""What stands in the last `\boxed{...}` or `\boxed x`; empty where there is none."""
    opening = max(_BOXED, key=text.rfind)
    start = text.rfind(opening)
    if start < 0:
        _, mark, rest = text.rpartition("\\boxed ")
        return rest.split("$")[0].strip() if mark else ""
    start += len(opening)
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return ""


def box_stated_answer(text: str) -> tuple[str, str]:
    r"""The text with its closing `The answer is 5` as `The answer is \boxed{5}.`, and the answer.

    Both are empty where the text does not end so.
    """
    match = _STATED.search(text)
    if match is None:
        return "", ""
    answer = match["answer"].strip("$ ")
    if not answer or answer.count("{") != answer.count("}"):
        return "", ""
    return f"{text[: match.start()]}The answer is \\boxed{{{answer}}}.", answer
