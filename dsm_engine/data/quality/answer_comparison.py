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
_WORD = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_NAME = re.compile(rf"[^=]*?(?:(?<![<>!=])=(?!=)|\\approx)\s*|{_WORD}(?:\s+{_WORD})*\s*:\s*")
_OPTION = re.compile(r"^\(?[a-zA-Z]\)\s*")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
_BRACKETS = re.compile(r"(?:\\left)?[\[(](.*)(?:\\right)?[\])]", re.DOTALL)
_NUMBER_IN_WORDS = re.compile(
    rf"(?:{_WORD}(?:\s*[:=]\s*|[\s,]+))*[$£€¥]?(-?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:[eE][-+]?\d+)?)"
    rf"%?(?:\s*[^\W\d_]{{2,}}(?:[\s,]+{_WORD})*)?\s*[.。!]?"
)
_DENIAL = re.compile(
    r"\b(?:no|not|never|neither|without|except|wrong)\b|n['’]t\b|[不没非无]|\\(?:not|neq?)\b|!=|≠",
    re.IGNORECASE,
)
# Words that make another value of the number beside them.
_FUNCTION = re.compile(
    r"\b(?:than|a?(?:sin|cos|tan)h?|sqrt|log|ln|exp|pi|mod|factorial|squared|cubed)\b",
    re.IGNORECASE,
)
_DECIMAL = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?(?:[eE]([-+]?\d{1,2}))?")
_FRACTION = re.compile(r"(-?)\s*(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")


def same_answer(found: str, given: str) -> bool:
    """Whether they are equal by evaluation's grading, or one is the other rounded.

    The less exact one decides to how many digits; fewer digits than are given must be at least two.
    Call it in the main thread, as `dsm_engine.grading.grade`.
    """
    if not found or _denies(found, given):
        return False
    return _rounded_alike(found, given) or grade(found, given)


def among_answers(found: str, given: str) -> bool:
    """Whether what is found is the given answer or names it among its parts.

    Parts may have names, letters of options, words and brackets around them.
    """
    if same_answer(found, given):
        return True
    if _denies(found, given) or len(found) > _MAX_CHARACTERS or len(given) > _MAX_CHARACTERS:
        return False
    wanted = _unbracketed(given)
    plain = _unbracketed(_TEXT.sub(r"\1", found).replace(r"\$", "").replace("$", "").strip())
    if wanted != given and same_answer(plain, wanted):
        return True
    return any(same_answer(part, wanted) for part in _parts(plain))


def number_in_words(text: str) -> str:
    """The number of a text that has one number and besides only words, names and units.

    "" where there is none, or anything that makes another value of it: operators, functions,
    brackets, powers, a negation.
    """
    match = _NUMBER_IN_WORDS.fullmatch(text.strip())
    if match is None or _FUNCTION.search(text) or _DENIAL.search(text):
        return ""
    return match[1].rstrip(",")


def _denies(found: str, given: str) -> bool:
    """Whether what is found says `not 5`, `no solution for n = 3`; the given answer may as well."""
    return _DENIAL.search(found) is not None and _DENIAL.search(given) is None


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in _SEPARATOR.split(text):
        value = _OPTION.sub("", _without_name(part.strip())).strip()
        parts += [value, number_in_words(value)]
    return [part for part in parts if part]


def _without_name(text: str) -> str:
    match = _NAME.match(text)
    return text[match.end() :] if match else text


def _unbracketed(text: str) -> str:
    match = _BRACKETS.fullmatch(text.strip())
    return match[1].strip() if match and not re.search(r"[\[\](]", match[1]) else text


def _rounded_alike(found: str, given: str) -> bool:
    found, given = found.strip().strip("$"), given.strip().strip("$")
    first, second = _value(found), _value(given)
    if first is None or second is None:
        return False
    if first == second:
        return True
    found_digits, given_digits = _num_digits(found), _num_digits(given)
    if given_digits and (found_digits is None or found_digits >= given_digits):
        return _rounds_to(first, second, given_digits)
    if found_digits and given_digits != 0 and found_digits >= _MIN_ROUNDED_DIGITS:
        return _rounds_to(second, first, found_digits)
    return False


def _rounds_to(exact: Fraction, rounded: Fraction, num_digits: int) -> bool:
    """Halves may go either way; so may what a float's last bit decides."""
    half = Fraction(1, 2) / Fraction(10) ** num_digits
    return rounded != 0 and abs(exact - rounded) <= half + half / 10**6


def _num_digits(text: str) -> int | None:
    """Decimals behind the point; None of a fraction, which is exact.

    0 of what is no rounding: an integer, also as `5.0`, `1e3` and `1.2e2`, or `1e-5`.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    decimals = match[1] or ""
    return 0 if decimals in ("", "0") else max(0, len(decimals) - int(match[2] or 0))


def _value(text: str) -> Fraction | None:
    if len(text) > _MAX_CHARACTERS:
        return None
    if match := _FRACTION.fullmatch(text):
        numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
        sign = -1 if match[1] else 1
        return Fraction(sign * numerator, denominator) if denominator else None
    return Fraction(text.replace(",", "")) if _DECIMAL.fullmatch(text) else None
