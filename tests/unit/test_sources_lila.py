"""Lila: rows as they are hosted and as they stand in the original archive."""

import orjson
import pytest

from dsm_engine.data.example import Block, ExampleOmitted

HOSTED = {
    "input": "What is 1 + 2?",
    "output_program": "answer = 1 + 2\nprint(answer)",
    "output_answer": "3",
    "split": "train",
    "dataset": "amps_algebra",
}
ORIGINAL = {
    "Input": "What is 1 + 2?",
    "Output Program": ["answer = 1 + 2\nprint(answer)", "print(3)"],
    "Output Answer": ["3", "3"],
    "split": "train",
    "dataset": "amps_algebra",
}


def check(example):
    assert example.question == "What is 1 + 2?"
    assert example.blocks == (Block(kind="program", text=HOSTED["output_program"]),)
    assert (example.answer, example.language, example.format) == ("3", "en", "pot")
    assert example.id.startswith("lila/amps_algebra/")
    assert (example.source, example.licence) == ("lila", "CC-BY-4.0")


def test_a_hosted_row_becomes_a_program_of_thought(write_records, read_examples):
    (example,) = read_examples(write_records(HOSTED), "lila")
    check(example)


def test_a_hosted_parquet_file_is_read(tmp_path, read_examples):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([HOSTED]), path)
    (example,) = read_examples(path, "lila")
    check(example)


def test_the_original_archives_file_gives_first_program_and_answer(write_records, read_examples):
    content = orjson.dumps(
        {"Categories": ["algebra"], "Instances": [ORIGINAL, {**ORIGINAL, "Output Answer": [3]}]},
        option=orjson.OPT_INDENT_2,
    )
    for example in read_examples(write_records(content, name="algebra.json"), "lila"):
        check(example)


def test_other_splits_are_omitted_unless_chosen(write_records, read_examples, fault_of):
    path = write_records({**HOSTED, "split": "test"})
    fault = fault_of(path, "lila")
    assert isinstance(fault, ExampleOmitted)
    assert fault.cause == "split_not_chosen"
    assert len(read_examples(path, "lila", splits=["test"])) == 1


@pytest.mark.parametrize("program", ["", None, [], [""]])
def test_an_answer_without_a_program_is_omitted(write_records, fault_of, program):
    fault = fault_of(write_records({**HOSTED, "output_program": program}), "lila")
    assert isinstance(fault, ExampleOmitted)
    assert fault.cause == "no_solution"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"output_program": "print 3"}, "not_python"),
        ({"output_program": {"a": 1}}, "bad_value"),
        ({"output_program": [["print(3)"]]}, "bad_value"),
        ({"output_answer": [{"a": 1}]}, "bad_value"),
        ({"input": " "}, "missing_question"),
    ],
)
def test_rows_of_another_shape_are_faults(write_records, fault_of, change, cause):
    assert fault_of(write_records({**HOSTED, **change}), "lila").cause == cause
