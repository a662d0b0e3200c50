"""MWPToolkit's sets: their four schemas, and text joined again from its segments."""

import contextlib
import re
from collections import Counter

import pytest

from dsm_engine.data.example import Example, ExampleOmitted
from dsm_engine.data.sources.held_out import fingerprint, held_out_questions, refuse_benchmark
from dsm_engine.data.sources.mwptoolkit import join_segments
from dsm_engine.data.sources.records import read_records
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.sources.rows import parse_object
from dsm_engine.errors import DsmError
from dsm_engine.sandbox import Sandbox, sandbox_status

ALG514 = {
    "id": 17,
    "original_text": "Two ropes are 12 m long together ; one is 3 m longer . How long are they ?",
    "equation": "m+n=12.0 ; m-n=3.0",
    "ans": [4.5, 7.5],
    "number list": ["12.0", "3.0"],
    "number_position": [4, 9],
}
HMWP = {
    "id": 18,
    "original_text": "A 、 B 2 地 相距 2.5 千 米 ， 每 时 走 5 千 米 . 3 人 同行 ， 要 几 小时 ？",
    "equation": "5.0 * x = 2.5",
    "ans": [0.5],
}
MAWPS = {
    "id": 19,
    "original_text": "Ana has 4 pens and buys 3 more . How many pens has she ?",
    "segmented_text": "Ana has 4 pens and buys 3 more . How many pens has she ?",
    "equation": "X=(4.0+3.0)",
    "ans": 7.0,
}
DOLPHIN = {
    "id": "example.org.1",
    "index": 20,
    "text": "The squares of two consecutive positive integers add up to 41. Find them.",
    "sources": "example.org.1",
    "equations": ["unkn: n, n+1", "equ: n^2 + (n+1)^2 = 41", "equ: n > 0"],
    "ans": "4; 5",
    "ans_simple": [4, 5],
}
MAWPS_SINGLE = {
    "iIndex": 21,
    "sQuestion": " A shelf holds 0.25 kg and 0.5 kg. How much is that? ",
    "lEquations": ["0.25+0.5"],
    "lSolutions": ["0.75"],
}
ASDIV = {
    "@ID": "nluds-0",
    "@Grade": "1",
    "Body": "Ida has six nuts. She finds three more.",
    "Question": "How many nuts has she now?",
    "Solution-Type": "Addition",
    "Answer": "9 (nuts)",
    "Formula": "6+3=9",
}
KEPT = {
    "alg514": (407, {"answer_mismatch": 4}),
    "draw": (593, {"answer_mismatch": 7}),
    "dolphin1878": (
        1333,
        {"answer_mismatch": 12, "bad_equation": 46, "no_final_answer": 18, "not_solved": 95},
    ),
    "hmwp": (
        4284,
        {"answer_mismatch": 37, "bad_equation": 7, "no_final_answer": 17, "not_solved": 47},
    ),
}
can_run = pytest.mark.skipif(not sandbox_status().available, reason=sandbox_status().reason)


@pytest.fixture(scope="module")
def read_once() -> dict[str, tuple[list[Example], Counter[str]]]:
    """What `read` has read."""
    return {}


@pytest.fixture
def read(read_once, read_published):
    """Reads a published set; each is read once in this module."""

    def read(name: str) -> tuple[list[Example], Counter[str]]:
        if name not in read_once:
            read_once[name] = read_published(published(name), "mwptoolkit")
        return read_once[name]

    return read


def published(name: str) -> str:
    return f"mwptoolkit/{name}__trainset.json.gz"


@pytest.mark.parametrize(
    ("record", "language", "question", "answer"),
    [
        (
            ALG514,
            "en",
            "Two ropes are 12 m long together; one is 3 m longer. How long are they?",
            "4.5, 7.5",
        ),
        (HMWP, "zh", "A、B 2地相距2.5千米，每时走5千米. 3人同行，要几小时？", "0.5"),
        (MAWPS, "en", "Ana has 4 pens and buys 3 more. How many pens has she?", "7"),
        (DOLPHIN, "en", DOLPHIN["text"], "4, 5"),
        (MAWPS_SINGLE, "en", "A shelf holds 0.25 kg and 0.5 kg. How much is that?", "0.75"),
        (
            ASDIV,
            "en",
            "Ida has six nuts. She finds three more. How many nuts has she now?",
            "9",
        ),
    ],
)
def test_each_schema_is_known_by_its_keys(
    write_records, read_examples, record, language, question, answer
):
    (example,) = read_examples(write_records(record), "mwptoolkit")
    assert (example.question, example.answer) == (question, answer)
    assert (example.language, example.format, example.topic) == (language, "pot", "")
    assert [block.kind for block in example.blocks] == ["program"]
    assert re.fullmatch(r"mwptoolkit/[0-9a-f]{16}", example.id)


def test_a_condition_shows_in_the_choice_of_the_solution(write_records, read_examples):
    (example,) = read_examples(write_records(DOLPHIN), "mwptoolkit")
    assert example.blocks[0].text == (
        "from sympy import Eq, solve, symbols\n\n"
        'n = symbols("n", positive=True)\n'
        "solution = solve(Eq(n ** 2 + (n + 1) ** 2, 41), n)[0]\n"
        'print(solution, solution + 1, sep=", ")'
    )


@pytest.mark.parametrize(
    ("record", "cause", "omitted"),
    [
        (ALG514 | {"ans": [4.5, 7.4]}, "answer_mismatch", True),
        (ALG514 | {"ans": [4.5, 7.5, 12]}, "answer_mismatch", True),
        (ALG514 | {"ans": []}, "no_final_answer", True),
        (ALG514 | {"ans": None}, "no_final_answer", True),
        (ALG514 | {"ans": [4.5, None]}, "bad_value", False),
        (ALG514 | {"ans": {"m": 4.5}}, "bad_value", False),
        (ALG514 | {"ans": [True]}, "bad_value", False),
        (ALG514 | {"ans": [[4.5]]}, "bad_value", False),
        (ALG514 | {"ans": ["four"]}, "bad_equation", True),
        (ALG514 | {"ans": [1e308]}, "bad_equation", True),
        (ALG514 | {"equation": "m+n=12"}, "not_solved", True),
        (ALG514 | {"equation": "m+n=12;"}, "bad_equation", True),
        (ALG514 | {"equation": "m/0=12"}, "bad_equation", True),
        (ALG514 | {"equation": "9**9**9=m"}, "bad_equation", True),
        (ALG514 | {"equation": ""}, "missing_answer", False),
        (ALG514 | {"equation": ["m=1"]}, "bad_value", False),
        (ALG514 | {"original_text": " "}, "missing_question", False),
        (DOLPHIN | {"text": None}, "missing_question", False),
        (DOLPHIN | {"equations": None}, "missing_answer", False),
        (DOLPHIN | {"equations": "unkn: n"}, "bad_value", False),
        (DOLPHIN | {"equations": ["unkn: n", 5]}, "bad_value", False),
        (DOLPHIN | {"equations": []}, "bad_equation", True),
        (DOLPHIN | {"equations": ["unkn:", "equ: n=4"]}, "bad_equation", True),
        (DOLPHIN | {"ans_simple": "4"}, "bad_value", False),
        (MAWPS_SINGLE | {"lSolutions": []}, "no_final_answer", True),
        (MAWPS_SINGLE | {"lEquations": ["X=1=2"]}, "bad_equation", True),
        (ASDIV | {"Formula": "29/9=3 r2", "Answer": "3 (nuts)"}, "answer_mismatch", True),
        (ASDIV | {"Answer": "(nuts)"}, "no_final_answer", True),
        ({"ID": "chal-1", "Body": "b", "Question": "q", "Answer": 1.0}, "bad_value", False),
        ({}, "bad_value", False),
    ],
)
def test_rows_without_a_checked_program_have_their_cause(
    write_records, fault_of, record, cause, omitted
):
    fault = fault_of(write_records(record), "mwptoolkit")
    assert fault.cause == cause
    assert isinstance(fault, ExampleOmitted) is omitted


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("It costs $ 5,100 , or 40 % of 7.5 .", "It costs $5,100, or 40% of 7.5."),
        ("the kids ' ages ; Ann 's is n't 3 !", "the kids' ages; Ann's isn't 3!"),
        ("60 kph -LRB- km per hour -RRB- ?", "60 kph (km per hour)?"),
        ("a film , `` Oz '' , ran", 'a film, "Oz", ran'),
        ("paid % 8 and .5 more", "paid % 8 and .5 more"),
        ("108 : 7 and 3 / 4 - 1", "108 : 7 and 3 / 4 - 1"),
        ("共 5 个 . 2015 年 ， 1 / 3 的 人", "共5个. 2015年，1/3的人"),
        ("长 为 5 . 3 人 ， 面积 15m ^ 2", "长为5. 3人，面积15m^2"),
        ("（ 1 ） 有 x cm ， 是 6 1 班", "（1）有x cm，是6 1班"),
    ],
)
def test_segments_are_joined_and_numbers_stay(text, joined):
    assert join_segments(text) == joined


@pytest.mark.parametrize("name", ["alg514", "draw", "hmwp", "mawps"])
def test_joining_changes_no_number_and_no_character_of_the_published_texts(shared_folder, name):
    number = re.compile(r"\d+(?:[.,]\d+)*")
    plain = str.maketrans({'"': None, "`": None, "'": None, "(": None, ")": None, " ": None})
    rows = list(read_records(shared_folder / "data" / published(name)))
    assert len(rows) > 400
    for row in rows:
        text = parse_object(row)["original_text"]
        joined = join_segments(text)
        assert number.findall(joined) == number.findall(text)
        treebank = text.replace("-LRB-", "").replace("-RRB-", "")
        assert joined.translate(plain) == treebank.translate(plain)


@pytest.mark.parametrize("name", KEPT)
def test_the_published_training_sets_are_read_and_not_refused(read, shared_folder, name):
    kept, dropped = read(name)
    assert (len(kept), dropped) == KEPT[name]
    assert {example.language for example in kept} == {"zh" if name == "hmwp" else "en"}
    assert len({example.id for example in kept}) == len(kept)
    refuse_benchmark(
        make_reader("mwptoolkit"), shared_folder / "data" / published(name), "sources.0"
    )


@pytest.mark.parametrize(
    ("name", "num_kept", "num_held_out"),
    [
        ("asdiv-a", 956, 956),
        ("mawps-single", 1558, 1530),
        ("mawps", 1841, 1623),
        ("alg514", 407, 4),
        ("draw", 593, 0),
        ("dolphin1878", 1333, 0),
        ("hmwp", 4284, 0),
    ],
)
def test_so_many_questions_are_those_of_benchmarks(read, name, num_kept, num_held_out):
    kept, _ = read(name)
    held_out = held_out_questions()
    found = [example for example in kept if fingerprint(example.question) in held_out]
    assert (len(kept), len(found)) == (num_kept, num_held_out)


def test_so_many_programs_choose_between_two_roots(read):
    kept, _ = read("hmwp")
    choice = re.compile(r"(?:min|max)\(solve")
    assert sum(bool(choice.search(example.blocks[0].text)) for example in kept) == 602


@pytest.mark.parametrize("name", ["asdiv-a", "mawps-single", "mawps"])
def test_those_that_are_benchmarks_are_refused(shared_folder, name):
    with pytest.raises(DsmError, match="never trained on"):
        refuse_benchmark(
            make_reader("mwptoolkit"), shared_folder / "data" / published(name), "sources.0"
        )


@can_run
@pytest.mark.parametrize("name", KEPT)
def test_some_programs_print_their_answers_in_the_sandbox(shared_folder, name):
    reader = make_reader("mwptoolkit")
    rows = list(reader.rows(shared_folder / "data" / published(name)))
    examples = []
    for row in rows[:: len(rows) // 12]:
        with contextlib.suppress(ExampleOmitted):
            examples.append(reader.example(row))
    assert len(examples) > 6
    check_in_sandbox(examples)


@can_run
def check_in_sandbox(examples) -> None:
    with Sandbox(timeout_s=60.0) as sandbox:
        results = sandbox.run([example.blocks[0].text for example in examples])
    printed = [(result.stdout, result.error) for result in results]
    assert printed == [(f"{example.answer}\n", "") for example in examples]
