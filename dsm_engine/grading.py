r"""From an answer's text to a verdict: which answer it gives, and whether that is the gold one.

The answer is looked for in the order of the original evaluation: "final answer is $...$. I hope",
the last `\boxed{}`, "the answer is" (or its Chinese forms), the last program's output, the last
number. Two answers are compared as strings, then as numbers, and only then by math-verify.
"""

import importlib.util
import re
import threading
from fractions import Fraction

_FENCED = re.compile(r"```(?:python|output)[^\n]*\n.*?(?:^```(?!\w)|\Z)", re.MULTILINE | re.DOTALL)
_FINAL_ANSWER = re.compile(r"final answer is \$(.+?)\$\. I hope", re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*")
_PHRASE = re.compile(
    r"(?:he answer is|答案(?:是|为|等于))\s*[:：]?\s*(.+?)\s*(?:\.(?=\s|$)|[。；\n]|$)",
    re.IGNORECASE,
)
_NUMBER_IN_TEXT = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")
_TOLERANCE = Fraction(1, 10**6)
_MAX_COMPARED_CHARACTERS = 500
# Towers of powers, huge exponents and factorials: minutes in C code that no alarm interrupts.
_COSTLY = re.compile(r"\d\s*(?:\^|\*\*)\s*[{(]?\s*(?:\d+\s*[})]?\s*(?:\^|\*\*)|-?\d{5})|\d{5,}\s*!")
_MATH_VERIFY_TIMEOUT_S = 5


def extract_answer(text: str, *, program_output: str = "") -> str:
    """The answer that a text gives, "" where it gives none.

    `program_output` is what its last program printed; fenced blocks of the text itself are not
    searched.
    """
    prose = _FENCED.sub("", text)
    if match := _FINAL_ANSWER.search(prose):
        return match[1].strip()
    if boxes := boxed_answers(prose):
        return boxes[-1]
    if phrases := _PHRASE.findall(prose):
        return _unboxed(phrases[-1])
    if program_output:
        return _unboxed(program_output)
    numbers = _NUMBER_IN_TEXT.findall(prose)
    return numbers[-1].rstrip(",") if numbers else ""


def boxed_answers(text: str) -> list[str]:
    r"""The contents of every closed `\boxed{}`, in order; braces may be nested."""
    answers: list[str] = []
    for match in _BOX.finditer(text):
        start = match.end()
        if text[start : start + 1] != "{":
            if word := re.match(r"[^\s{}$]+", text[start:]):
                answers.append(word[0].rstrip(".,"))
            continue
        end = _closing_brace(text, start)
        if end is not None:
            answers.append(text[start + 1 : end].strip())
    return answers


def grade(predicted: str, gold: str) -> bool:
    """Whether two answers are the same. Call it in the main thread: math-verify needs signals."""
    predicted, gold = _normalized(predicted), _normalized(gold)
    if not predicted or not gold:
        return False
    if re.sub(r"\s", "", predicted) == re.sub(r"\s", "", gold):
        return True
    first, second = _number(predicted), _number(gold)
    if first is not None and second is not None:
        return _equal_numbers(first, second)
    return _math_verify(predicted, gold)


def grader_name() -> str:
    """Which comparison `grade` ends with here, for reports."""
    if importlib.util.find_spec("math_verify") is None:
        return "strings and numbers (math-verify is not installed)"
    from importlib.metadata import version

    return f"math-verify {version('math-verify')}"


def _unboxed(answer: str) -> str:
    boxes = boxed_answers(answer)
    return boxes[-1] if boxes else answer.strip()


def _closing_brace(text: str, start: int) -> int | None:
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # the character behind it is no structure: \{ \}
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def _normalized(answer: str) -> str:
    answer = answer.strip().rstrip(".。").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(answer) > len(left + right) and answer.startswith(left) and answer.endswith(right):
            answer = answer[len(left) : -len(right)].strip()
    answer = answer.replace("{,}", ",").replace(r"\!", "").replace(r"\,", "").replace(r"\$", "")
    return answer.replace("，", ",").replace("−", "-").strip()


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_COMPARED_CHARACTERS or not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    divisor = int(denominator or 1)
    return Fraction(numerator) / divisor if divisor else None


def _equal_numbers(first: Fraction, second: Fraction) -> bool:
    """Exactly for whole numbers; for others within what a program's rounding leaves."""
    if first.denominator == second.denominator == 1:
        return first == second
    return abs(first - second) <= _TOLERANCE * max(1, abs(second))


def _math_verify(predicted: str, gold: str) -> bool:
    if importlib.util.find_spec("math_verify") is None:
        return False
    longest = max(len(predicted), len(gold))
    if longest > _MAX_COMPARED_CHARACTERS or _COSTLY.search(predicted):
        return False
    assert threading.current_thread() is threading.main_thread(), "math-verify sets alarms"
    from math_verify import parse, verify

    golds, predictions = (
        parse(f"${text}$", parsing_timeout=_MATH_VERIFY_TIMEOUT_S) for text in (gold, predicted)
    )
    return bool(verify(golds, predictions, timeout_seconds=_MATH_VERIFY_TIMEOUT_S))
