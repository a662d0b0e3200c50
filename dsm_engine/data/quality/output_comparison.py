"""Whether what a program prints is what an answer says it printed."""

import re
from decimal import Decimal, InvalidOperation

_RELATIVE_TOLERANCE = Decimal("1e-6")
_ABSOLUTE_TOLERANCE = Decimal("1e-9")
_MAX_COMPARED_CHARACTERS = 20_000
_NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|(?<![\w.])\.\d+(?:[eE][-+]?\d+)?"
)
# NumPy 2 shows the type of a number that NumPy 1 showed alone.
_NUMPY_SCALAR = re.compile(r"\bnp\.(?:float|int|uint)\d+\(([^()]*)\)|\bnp\.(True|False)_")
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Interrupt|Iteration|Exit|Timeout))\b")
_IS_ERROR = re.compile(
    r"Traceback \(most recent call last\)|\A(?:Runtime )?[Ee]rrors?:|\A[Tt]ime ?[Oo]ut"
    r"|^[A-Z]\w*(?:Error|Exception): ",
    re.MULTILINE,
)
_TRUNCATED = re.compile(r"(?P<start>.{50})\.\.\.(?P<end>.{50})", re.DOTALL)
_NOTHING = "<empty_execution>"  # MathCoder's word for a cell that displayed nothing
_BRACES = re.compile(r"\{([^{}]*)\}")
# Not beside signs, points and commas, which belong to numbers: `1 -2`, `1. 2`, `1, 234`.
_SPACED_PUNCTUATION = re.compile(r" ?([^\w\s.,+-]) ?")
_MESSAGE_START = re.compile(r"\A(?:Runtime )?[Ee]rrors?:\s*|\A[A-Z]\w*:\s*")
_MESSAGE_PLACE = re.compile(r" ?\([^()]*\bline \d+\)\Z")


def same_output(recorded: str, printed: str) -> bool:
    """Whether two outputs are the same but for white space, roundings and the order of sets.

    `recorded` may be cut as the tool loop cuts it: 50 characters, `...`, the last 50.
    """
    recorded, printed = _plain(recorded), _plain(printed)
    if recorded == printed:
        return True
    if cut := _TRUNCATED.fullmatch(recorded):
        return len(printed) > 100 and _same(cut["start"] + cut["end"], printed[:50] + printed[-50:])
    return _same(recorded, printed) or _same(_sets_sorted(recorded), _sets_sorted(printed))


def records_error(recorded: str) -> bool:
    """Whether what is recorded tells of an error: a traceback, or as the tool loop shows one."""
    return _IS_ERROR.search(_plain(recorded)) is not None


def records_timeout(recorded: str) -> bool:
    """Whether what is recorded tells of a program that was stopped for its time."""
    return records_error(recorded) and re.search("time ?out", recorded.lower()) is not None


def same_error(recorded: str, error: str) -> bool:
    """Whether two errors are of one type; messages and places differ between versions.

    Where one of them names no type, one message is to start with the other.
    """
    recorded = _plain(recorded)
    named, found = _ERROR.findall(recorded), _ERROR.match(error)
    if named and found:
        return found[1] in named
    if found and found[1] == "TimeoutError":
        return records_timeout(recorded)
    first, second = _message(recorded), _message(error)
    return bool(first and second) and (first.startswith(second) or second.startswith(first))


def _message(error: str) -> str:
    return _MESSAGE_PLACE.sub("", _MESSAGE_START.sub("", " ".join(error.split())))


def _plain(output: str) -> str:
    output = _ESCAPE_SEQUENCE.sub("", output.replace("\r\n", "\n")).strip()
    if output == _NOTHING:
        return ""
    return _NUMPY_SCALAR.sub(lambda match: match[1] or match[2], output)


def _same(recorded: str, printed: str) -> bool:
    first, second = (
        _SPACED_PUNCTUATION.sub(r"\1", " ".join(text.split())) for text in (recorded, printed)
    )
    if first == second:
        return True
    if max(len(first), len(second)) > _MAX_COMPARED_CHARACTERS:
        return False
    if _NUMBER.sub("0", first) != _NUMBER.sub("0", second):
        return False
    pairs = zip(_NUMBER.findall(first), _NUMBER.findall(second), strict=True)
    return all(_close(*pair) for pair in pairs)


def _close(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        a, b = Decimal(first), Decimal(second)
        difference = abs(a - b)
        if a == a.to_integral_value() and b == b.to_integral_value():
            return difference == 0
        if a == 0 or b == 0:
            return difference <= _ABSOLUTE_TOLERANCE
        return difference <= _RELATIVE_TOLERANCE * max(abs(a), abs(b))
    except (InvalidOperation, ArithmeticError):
        return False


def _sets_sorted(text: str) -> str:
    """Each innermost `{...}` with its parts in the order of their characters."""
    return _BRACES.sub(lambda match: "{" + ",".join(sorted(_elements(match[1]))) + "}", text)


def _elements(text: str) -> list[str]:
    """The parts between the commas that stand in no brackets."""
    elements, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return [element.strip() for element in elements]
