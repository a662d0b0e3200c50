r"""Whether the final answer of an example is the one its source gives.

Evaluation asks whether a model answers as it was asked to. Here the question is whether two texts
of one publisher agree, so more is let pass: roundings, and a given answer that is one of several
parts (`x = 43, y = 104` where 43 is given).
"""

import re
from fractions import Fraction

from dsm_engine.grading import grade

_MIN_ROUNDED_DIGITS = 2
_MAX_CHARACTERS = 200
_SEPARATOR = re.compile(r",\s+|,?\s*\\q?quad\s*|;\s*|\s+and\s+|\\text\{\s*and\s*\}")
_NAME = re.compile(r"^.*?(?:=|:|\\approx)\s*", re.DOTALL)
_OPTION = re.compile(r"^\(?[a-zA-Z]\)\s*")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
_BRACKETS = re.compile(r"(?:\\left)?[\[(](.*)(?:\\right)?[\])]", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_DECIMAL = re.compile(r"-?\d[\d,]*(?:\.(\d+))?(?:[eE]([-+]?\d{1,2}))?")
_FRACTION = re.compile(r"(-?)\s*(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")


def same_answer(found: str, given: str) -> bool:
    """Whether they are equal by evaluation's grading, or one is the other rounded.

    The less exact one decides to how many digits; fewer digits than are given must be at least two.
    Call it in the main thread, as `dsm_engine.grading.grade`.
    """
    if not found:
        return False
    return _rounded_alike(found, given) or grade(found, given)


def among_answers(found: str, given: str) -> bool:
    """Whether what is found is the given answer or names it among its parts.

    Parts may have names, letters of options, words and brackets around them.
    """
    if same_answer(found, given):
        return True
    if len(found) > _MAX_CHARACTERS or len(given) > _MAX_CHARACTERS:
        return False
    wanted = _unbracketed(given)
    plain = _unbracketed(_TEXT.sub(r"\1", found).replace(r"\$", "").replace("$", "").strip())
    if wanted != given and same_answer(plain, wanted):
        return True
    return any(same_answer(part, wanted) for part in _parts(plain))


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in _SEPARATOR.split(text):
        value = _OPTION.sub("", _NAME.sub("", part.strip())).strip()
        parts.append(value)
        numbers = _NUMBER.findall(value)
        if len(numbers) == 1 and re.search(r"[A-Za-z]{2}", value):  # a number and its unit
            parts.append(numbers[0].rstrip(","))
    return [part for part in parts if part]


def _unbracketed(text: str) -> str:
    match = _BRACKETS.fullmatch(text.strip())
    return match[1].strip() if match and not re.search(r"[\[\](]", match[1]) else text


def _rounded_alike(found: str, given: str) -> bool:
    found, given = found.strip().strip("$"), given.strip().strip("$")
    first, second = _value(found), _value(given)
    if first is None or second is None:
        return False
    found_digits, given_digits = _num_digits(found), _num_digits(given)
    if given_digits and (found_digits is None or found_digits >= given_digits):
        return _rounds_to(first, second, given_digits)
    if found_digits and given_digits != 0 and found_digits >= _MIN_ROUNDED_DIGITS:
        return _rounds_to(second, first, found_digits)
    return False


def _rounds_to(exact: Fraction, rounded: Fraction, num_digits: int) -> bool:
    """Halves may go either way; so may what a float's last bit decides."""
    half = Fraction(1, 2) / Fraction(10) ** num_digits
    return abs(exact - rounded) <= half + half / 10**6


def _num_digits(text: str) -> int | None:
    """Decimals behind the point; 0 of an integer, None of a fraction, which is exact."""
    match = _DECIMAL.fullmatch(text)
    return len(match[1] or "") - int(match[2] or 0) if match else None


def _value(text: str) -> Fraction | None:
    if len(text) > _MAX_CHARACTERS:
        return None
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        sign = -1 if match[1] else 1
        return Fraction(sign * numerator, denominator) if denominator else None
    return Fraction(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None
