"""Readers: each published schema to examples, and places for everything that is wrong."""

import gzip
import os
import re
from pathlib import Path

import orjson
import pytest

from dsm_engine.data.example import Block, Example, ExampleFault, ExampleOmitted
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sources import rows
from dsm_engine.data.sources.registry import READERS, make_reader
from dsm_engine.errors import DsmError
from dsm_engine.recipes import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
SHARED = Path(os.environ.get("DSM_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def write(path: Path, *records) -> Path:
    lines = [record if isinstance(record, bytes) else orjson.dumps(record) for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(path: Path, reader: str, **options) -> list[Example]:
    source = make_reader(reader, options=options)
    return [source.example(row) for row in source.rows(path)]


def fault_of(path: Path, reader: str, **options) -> ExampleFault:
    with pytest.raises(ExampleFault) as caught:
        read(path, reader, **options)
    return caught.value


def prose(example: Example) -> str:
    assert [block.kind for block in example.blocks] == ["text"]
    return example.blocks[0].text


GSM8K = {
    "question": "Natalia sold clips?",
    "answer": (
        "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 1,048 = <<1000+48=1048>>1,048.\n#### 1,048"
    ),
}
TAL = {
    "queId": "e9c3",
    "problem": "$$2006$$年的元旦是． ",
    "answer_option_list": [
        [{"aoVal": "A", "content": "星期一 "}],
        [{"aoVal": "B", "content": "星期二 "}],
    ],
    "knowledge_point_routes": ["拓展思维->拓展思维->应用题模块->周期问题->日期中的周期", "x->y"],
    "answer_analysis": ["因为$$365=7\\times 52+1$$，所以是星期一． ", "<p>另解</p>"],
    "answer_value": "A",
}


def test_gsm8k_loses_its_calculator_marks_and_boxes_its_answer(tmp_path: Path):
    (example,) = read(write(tmp_path / "a.jsonl", GSM8K), "gsm8k")
    assert prose(example) == (
        "She sold 48/2 = 24 in May.\nIn all 1,048 = 1,048.\nThe answer is \\boxed{1048}."
    )
    assert (example.answer, example.language, example.format) == ("1048", "en", "cot")
    assert (example.source, example.licence) == ("gsm8k", "MIT")


def test_an_id_made_from_content_follows_the_content_not_the_line(tmp_path: Path):
    other = {**GSM8K, "question": "Another?"}
    first, second = read(write(tmp_path / "a.jsonl", GSM8K, other), "gsm8k")
    (moved,) = read(write(tmp_path / "b.jsonl", other), "gsm8k")
    assert moved.id == second.id != first.id


@pytest.mark.parametrize("answer", ["24", "She sold 24.\n####  ", "#### 24"])
def test_gsm8k_without_reasoning_or_final_answer_is_a_fault(tmp_path: Path, answer):
    path = write(tmp_path / "a.jsonl", {**GSM8K, "answer": answer})
    assert fault_of(path, "gsm8k").cause == "missing_answer"


def test_tal_scq5k_asks_with_options_and_answers_with_the_boxed_letter(tmp_path: Path):
    (example,) = read(write(tmp_path / "a.jsonl", TAL), "tal_scq5k")
    assert example.question == "$$2006$$年的元旦是．\nA. 星期一\nB. 星期二"
    assert prose(example) == "因为$$365=7\\times 52+1$$，所以是星期一．\n答案是\\boxed{A}。"
    assert (example.id, example.topic) == ("tal_scq5k/e9c3", "periodic_problems")
    assert (example.answer, example.language) == ("A", "zh")


def test_tal_scq5k_in_english_concludes_in_english(tmp_path: Path):
    record = {**TAL, "problem": "Which $\\frac{1}{2}$ is even?", "knowledge_point_routes": []}
    record["answer_option_list"] = [[{"aoVal": "A", "content": "two"}]]
    (example,) = read(write(tmp_path / "a.jsonl", record), "tal_scq5k")
    assert prose(example).endswith("\nThe answer is \\boxed{A}.")
    assert (example.language, example.topic) == ("en", "")


@pytest.mark.parametrize(
    "analysis", [None, [], ["无 "], ["略．"], ["NA"], ["N/A. "], ["$$\\rm B$$ "], ["\\uline{NA}"]]
)
def test_tal_scq5k_rows_without_an_analysis_are_omitted(tmp_path: Path, analysis):
    path = write(tmp_path / "a.jsonl", {**TAL, "answer_analysis": analysis})
    fault = fault_of(path, "tal_scq5k")
    assert isinstance(fault, ExampleOmitted)
    assert fault.cause == "no_solution"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"answer_value": "C"}, "missing_answer"),
        ({"answer_option_list": [[{"aoVal": "A"}]]}, "bad_value"),
        ({"answer_option_list": None}, "bad_value"),
        ({"answer_analysis": [1]}, "bad_value"),
        ({"knowledge_point_routes": "a->b->c"}, "bad_value"),
        ({"knowledge_point_routes": [1]}, "bad_value"),
        ({"problem": ""}, "missing_question"),
    ],
)
def test_tal_scq5k_rows_of_another_shape_are_faults(tmp_path: Path, change, cause):
    path = write(tmp_path / "a.jsonl", {**TAL, **change})
    assert fault_of(path, "tal_scq5k").cause == cause


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So $\\boxed{1}$ or rather $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("It is $\\boxed 7$.", "7"),
        ("It is \\fbox{A}.", "A"),
    ],
)
def test_math_answers_with_its_last_box(tmp_path: Path, solution, answer):
    record = {"problem": "p", "level": "Level 5", "type": "Algebra", "solution": solution}
    (example,) = read(write(tmp_path / "a.jsonl", record), "math")
    assert (example.answer, example.topic, prose(example)) == (answer, "Algebra", solution)


def test_math_without_a_box_is_omitted(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"problem": "p", "solution": "It is \\boxed{1."})
    assert isinstance(fault_of(path, "math"), ExampleOmitted)


ENGINE = {
    "id": "s-1",
    "question": "1+1?",
    "blocks": [{"kind": "program", "text": "print(2)"}, {"kind": "output", "text": "2"}],
    "answer": "2",
    "language": "en",
    "format": "tir",
    "source": "sample",
    "topic": "sum",
    "licence": "Apache-2.0",
    "numbers": [1, 1],
}


def test_engine_examples_come_back_as_they_were_written(tmp_path: Path):
    (example,) = read(write(tmp_path / "a.jsonl", ENGINE), "examples")
    assert example == Example(
        id="s-1",
        question="1+1?",
        blocks=(Block(kind="program", text="print(2)"), Block(kind="output", text="2")),
        answer="2",
        language="en",
        format="tir",
        source="sample",
        topic="sum",
        licence="Apache-2.0",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tirr"}, "'format' is 'tirr' .*did you mean 'tir'"),
        ({"language": None}, "'language' is None"),
        ({"blocks": []}, "'blocks' is missing or empty"),
        ({"blocks": "text"}, "'blocks' is not a list"),
        ({"blocks": [{"kind": "code", "text": "x"}]}, "'kind' is 'code'"),
        ({"blocks": [{"kind": "text"}]}, "a block is not an object"),
        ({"question": 5}, "'question' is not text but a number"),
        ({"question": " \n"}, "'question' is blank"),
        ({"topic": ["a"]}, "'topic' is not text but a list"),
    ],
)
def test_engine_examples_of_another_shape_are_faults(tmp_path: Path, change, message):
    path = write(tmp_path / "a.jsonl", {**ENGINE, **change})
    with pytest.raises(ExampleFault, match=message):
        read(path, "examples")


def test_a_users_jsonl_needs_no_options(tmp_path: Path):
    solution = "See.\n```python\nprint(2)\n```\n```output\n2\n```\nThe answer is 2."
    path = write(
        tmp_path / "a.jsonl",
        {"question": "1+1?", "answer": "Two."},
        {"question": "求 1+1", "solution": solution, "answer": 2, "topic": "sum", "id": 7},
    )
    plain, tools = read(path, "jsonl")
    assert (prose(plain), plain.answer, plain.language, plain.format) == ("Two.", "", "en", "cot")
    assert [block.kind for block in tools.blocks] == ["text", "program", "output", "text"]
    assert (tools.answer, tools.language, tools.format) == ("2", "zh", "tir")
    assert (tools.id, tools.topic) == ("7", "sum")


def test_a_users_jsonl_under_other_keys(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"q": "1+1?", "a": "Two.", "f": "2"})
    (example,) = read(
        path, "jsonl", question_key="q", solution_key="a", answer_key="f", language="zh"
    )
    assert (example.question, prose(example), example.answer) == ("1+1?", "Two.", "2")
    assert example.language == "zh"


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"question": "q"}, "missing_answer"),
        ({"question": "q", "solution": ""}, "missing_answer"),
        ({"question": "q", "solution": None, "answer": " "}, "missing_answer"),
        ({"solution": "s"}, "missing_question"),
        ({"question": "q", "solution": "```python\nx"}, "open_fence"),
        ([1], "not_an_object"),
        (b'{"question": "q"', "bad_json"),
        (b'{"question": "q", "answer": NaN}', "bad_json"),
        (b"[" * 2000, "bad_json"),
        (b'{"question": "\xff"}', "bad_utf8"),
        (b'{"question": "\xed\xa0\x80"}', "bad_utf8"),
        (b'{"question": "\\ud800"}', "lone_surrogate"),
    ],
)
def test_each_kind_of_damage_has_its_cause(tmp_path: Path, record, cause):
    path = write(tmp_path / "a.jsonl", record)
    assert fault_of(path, "jsonl").cause == cause


def test_a_number_is_an_answer(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        {"question": "1+1?", "answer": 2},
        {"question": "1+1?", "solution": 2.5, "answer": 3},
    )
    first, second = read(path, "jsonl")
    assert (prose(first), prose(second), second.answer) == ("2", "2.5", "3")


def test_a_records_own_language_and_format_hold(tmp_path: Path):
    record = {"question": "1+1?", "answer": "Two."}
    path = write(
        tmp_path / "a.jsonl",
        {**record, "language": "zh", "format": "pot"},
        {**record, "format": None},
    )
    first, second = read(path, "jsonl")
    assert (first.language, first.format) == ("zh", "pot")
    assert (second.language, second.format) == ("en", "cot")
    first, second = read(path, "jsonl", language="en", format="tir")
    assert (first.language, first.format) == ("zh", "pot")
    assert (second.language, second.format) == ("en", "tir")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "fr"}, "'language' is 'fr'"),
        ({"language": ["en"]}, "'language' is"),
        ({"format": "cott"}, "'format' is 'cott' .*did you mean 'cot'"),
        ({"format": "x" * 5000}, "'format' is 'x{79} "),
    ],
)
def test_a_records_language_and_format_are_known_ones(tmp_path: Path, change, message):
    path = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a", **change})
    fault = fault_of(path, "jsonl")
    assert fault.cause == "bad_value"
    assert re.search(message, str(fault))


@pytest.mark.parametrize("line", [b'[{"question": "q"}]', b"{"])
def test_json_that_is_not_one_object_a_line_gets_a_hint(tmp_path: Path, line: bytes):
    path = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}, line)
    assert str(fault_of(path, "jsonl")).endswith("; one JSON object a line is expected")


def test_an_unknown_reader_or_option_names_the_nearest():
    with pytest.raises(DsmError, match=r"sources\.1: unknown reader 'gsm' .*mean 'gsm8k'"):
        make_reader("gsm", where="sources.1")
    with pytest.raises(DsmError, match=r"unknown key 'questionkey' .*mean 'question_key'"):
        make_reader("jsonl", options={"questionkey": "q"})
    with pytest.raises(DsmError, match="unknown key 'language'"):
        make_reader("gsm8k", options={"language": "en"})


def test_every_reader_is_registered_under_its_own_name():
    assert all(reader.name == name for name, reader in READERS.items())
    assert sorted(READERS) == [
        *("ape210k", "examples", "gaokao_bench", "gsm8k", "jsonl", "lila", "math", "math23k"),
        *("math_instruct", "mathcoder", "mwptoolkit", "tal_scq5k", "tora"),
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_data_names_a_reader_and_its_options(path: Path):
    recipe = load_recipe(path, [], PreprocessRecipe)
    for source in recipe.sources:
        make_reader(source.reader, source=source.name, options=source.options, where=str(path))


@pytest.mark.parametrize("compress", [False, True])
def test_rows_know_their_places(tmp_path: Path, compress):
    content = b'\xef\xbb\xbf{"a":1}\r\n\n  \n{"b":2}\n{"c":3}'
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content) if compress else content)
    found = [(row.line, row.byte, row.raw) for row in rows.read_lines(path)]
    assert found == [(1, 3, b'{"a":1}'), (4, 16, b'{"b":2}'), (5, 24, b'{"c":3}')]


def test_a_line_too_long_is_one_bad_row_and_the_next_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(rows, "BUFFER_BYTES", 64)
    path = write(tmp_path / "a.jsonl", b"x" * 1000, b"x" * 1001, b"x" * 5000, b"{}")
    found = list(rows.read_lines(path))
    assert [row.too_long for row in found] == [False, True, True, False]
    assert [row.byte for row in found] == [0, 1001, 2003, 7004]
    with pytest.raises(ExampleFault, match="more than 1000 bytes"):
        rows.parse_object(found[1])
    assert len(found[2].raw) <= 64


@pytest.mark.parametrize("damage", ["cut", "flipped", "trailing"])
def test_a_damaged_gzip_file_is_one_clear_line(tmp_path: Path, damage):
    content = bytearray(gzip.compress(b'{"question": "q"}\n' * 50))
    path = tmp_path / "a.jsonl.gz"
    changed = {
        "cut": content[:-12],
        "flipped": content[:20] + bytes([content[20] ^ 255]) + content[21:],
        "trailing": content + b"garbage",
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(DsmError, match=r"a\.jsonl\.gz: cannot be read"):
        list(rows.read_lines(path))


def test_a_missing_file_is_one_clear_line(tmp_path: Path):
    with pytest.raises(DsmError, match="cannot be read: No such file"):
        list(rows.read_lines(tmp_path / "none.jsonl"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is absent")
@pytest.mark.parametrize(
    ("reader", "file", "num_kept", "num_omitted"),
    [
        ("gsm8k", "gsm8k/train.jsonl.gz", 7473, 0),
        ("tal_scq5k", "tal_scq5k/ch_single_choice_train_3K.jsonl.gz", 2962, 38),
        ("tal_scq5k", "tal_scq5k/en_single_choice_train_3K.jsonl.gz", 2809, 191),
        ("math", "math/train.jsonl.gz", 7498, 2),
    ],
)
def test_the_published_files_are_read_whole(reader, file, num_kept, num_omitted):
    source = make_reader(reader)
    kept, omitted = [], 0
    for row in source.rows(SHARED / file):
        try:
            kept.append(source.example(row))
        except ExampleOmitted:
            omitted += 1
    assert (len(kept), omitted) == (num_kept, num_omitted)
    assert len({example.id for example in kept}) == num_kept
    assert not any("<<" in example.blocks[0].text for example in kept if reader == "gsm8k")
