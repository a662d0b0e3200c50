"""The sentences and numbers of the sample set's bilingual word problems.

Four operations, four openings and four questions each, sixteen names and twelve items a language.
What a problem may be made of is split in two: number pairs, sentence pairs and name-item pairs of
one side never occur on the other, so a held-out problem is new in all three.
"""

import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

Side = Literal["train", "validation", "held_out"]

OPERATIONS = {
    "addition": "a + b",
    "subtraction": "a - b",
    "multiplication": "a * b",
    "multiplication_subtraction": "a * b - c",
}
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One word problem; `numbers` stand for a, b (and c) of its operation's expression."""

    question: str
    operation: str
    language: str
    numbers: tuple[int, ...]

    @property
    def expression(self) -> str:
        return OPERATIONS[self.operation]


def draw_problem(rng: Random, operation: str, language: str, side: Side) -> Problem:
    """A random problem that belongs to `side`."""
    words = _WORDS[language]
    names, items = words.names.split(), words.items.split()
    openings, questions = _SENTENCES[operation, language]
    while True:
        numbers = _draw_numbers(rng, operation)
        opening, question = rng.randrange(len(openings)), rng.randrange(len(questions))
        name, other = rng.sample(range(len(names)), 2)
        item = rng.randrange(len(items))
        unseen = ((opening + question) % 4 == 0, (name + item) % 5 == 0)
        if unseen != ((side != "train"),) * 2 or side_of_numbers(numbers) != side:
            continue
        fields = dict(zip("abc", map(str, numbers), strict=False))
        fields |= {"n": names[name], "m": names[other], "i": items[item]}
        template = openings[opening] + words.between_sentences + questions[question]
        text = template.format(**fields)
        return Problem(question=text, operation=operation, language=language, numbers=numbers)


def side_of_numbers(numbers: tuple[int, ...]) -> Side:
    """The side that the first two numbers belong to, in either order and for every operation.

    A hash decides, because a rule on the numbers themselves (a modulus, say) would hide whole
    digits from training.
    """
    first, second = sorted(numbers[:2])
    bucket = zlib.crc32(f"{first},{second}".encode()) % 15
    if bucket >= 3:
        return "train"
    return "validation" if bucket == 0 else "held_out"


def _draw_numbers(rng: Random, operation: str) -> tuple[int, ...]:
    if operation == "addition":
        return rng.randint(10, 99), rng.randint(10, 99)
    if operation == "subtraction":
        minuend = rng.randint(20, 99)
        return minuend, rng.randint(10, minuend - 1)
    factors = rng.randint(2, 12), rng.randint(3, 19)
    if operation == "multiplication":
        return factors
    return *factors, rng.randint(2, min(99, factors[0] * factors[1] - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Words:
    names: str  # sixteen, space between
    items: str  # twelve, space between
    between_sentences: str


_WORDS = {
    "en": _Words(
        names="Anna Bob Carl Dina Eric Fay Gus Hana Ian June Kim Lars Mona Ned Olga Pia",
        items="apples balls beads buttons cups eggs keys kites nuts peaches shells toys",
        between_sentences=" ",
    ),
    "zh": _Words(
        names="小安 小冰 小晨 小东 小飞 小光 小海 小佳 小康 小兰 小敏 小宁 小萍 小琪 小文 小阳",
        items="苹果 皮球 珠子 纽扣 杯子 鸡蛋 面包 气球 核桃 桃子 贝壳 玩具",
        between_sentences="",
    ),
}

_LEFT_EN = (
    "How many {i} are left?",
    "How many {i} are still there?",
    "How many {i} remain?",
    "Find what is left.",
)
_LEFT_ZH = ("还剩多少个{i}？", "剩下几个{i}？", "{i}还有多少个？", "求剩下的个数。")

# n, m: two names; i: the item; a, b, c: the numbers. Openings first, then questions.
_SENTENCES = {
    ("addition", "en"): (
        (
            "{n} has {a} {i} and gets {b} more.",
            "{n} keeps {a} {i} and {m} keeps {b}.",
            "A box holds {a} {i} and {n} puts in {b}.",
            "{n} sold {a} {i} on Monday and {b} on Friday.",
        ),
        (
            "How many {i} is that in all?",
            "How many {i} are there together?",
            "What is the total of the {i}?",
            "Find the sum.",
        ),
    ),
    ("addition", "zh"): (
        (
            "{n}有{a}个{i}，又得到{b}个。",
            "{n}有{a}个{i}，{m}有{b}个。",
            "盒里有{a}个{i}，{n}又放进{b}个。",
            "{n}周一卖出{a}个{i}，周五卖出{b}个。",
        ),
        ("一共有多少个{i}？", "{i}总共几个？", "合起来是多少个{i}？", "求总数。"),
    ),
    ("subtraction", "en"): (
        (
            "{n} has {a} {i} and uses {b}.",
            "{n} had {a} {i} and gave {m} {b}.",
            "Of {a} {i} in a box, {n} takes {b}.",
            "{n} picked {a} {i} and dropped {b} of them.",
        ),
        _LEFT_EN,
    ),
    ("subtraction", "zh"): (
        (
            "{n}有{a}个{i}，用去{b}个。",
            "{n}有{a}个{i}，给了{m}{b}个。",
            "盒里有{a}个{i}，{n}取走{b}个。",
            "{n}买来{a}个{i}，弄丢{b}个。",
        ),
        _LEFT_ZH,
    ),
    ("multiplication", "en"): (
        (
            "{n} fills {a} trays with {b} {i} each.",
            "There are {a} rooms and {n} puts {b} {i} in each.",
            "{n} lays {b} {i} in each of {a} rows.",
            "Each of {a} pupils of {n} brings {b} {i}.",
        ),
        (
            "How many {i} is that altogether?",
            "How many {i} are there in all?",
            "Count all of the {i}.",
            "Find the product.",
        ),
    ),
    ("multiplication", "zh"): (
        (
            "{n}装了{a}盘{i}，每盘{b}个。",
            "有{a}间屋子，{n}在每间放{b}个{i}。",
            "{n}把{i}摆成{a}排，每排{b}个。",
            "{n}的{a}个学生每人带来{b}个{i}。",
        ),
        ("共有多少个{i}？", "{i}合计几个？", "算一算{i}的总数。", "求它们的积。"),
    ),
    ("multiplication_subtraction", "en"): (
        (
            "{n} fills {a} trays with {b} {i} each and sells {c}.",
            "{n} buys {a} bags of {b} {i} and gives {m} {c}.",
            "{a} boxes hold {b} {i} each, and {n} takes {c}.",
            "{n} made {b} {i} a day for {a} days and lost {c}.",
        ),
        _LEFT_EN,
    ),
    ("multiplication_subtraction", "zh"): (
        (
            "{n}装了{a}盘{i}，每盘{b}个，卖出{c}个。",
            "{n}买了{a}袋{i}，每袋{b}个，给了{m}{c}个。",
            "有{a}箱{i}，每箱{b}个，{n}取走{c}个。",
            "{n}每天做{b}个{i}，做了{a}天，弄丢{c}个。",
        ),
        _LEFT_ZH,
    ),
}
