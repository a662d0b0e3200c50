"""GAOKAO-Bench: off unless the recipe says otherwise by name; analyses with boxed answers."""

import orjson
import pytest

from dsm_engine.data.example import ExampleOmitted
from dsm_engine.errors import DsmError

ROW = {
    "year": "2010",
    "category": "（新课标）",
    "question": "1. （5 分) 集合 $A$ 是 (\nA. 1\nB. 2\n",
    "answer": ["B"],
    "analysis": "解: 因为如此.\n应选 B.\n",
    "index": 0,
    "score": 5,
}


def file_of(*rows) -> bytes:
    return orjson.dumps({"keywords": "MCQs", "example": rows}, option=orjson.OPT_INDENT_2)


def test_a_benchmark_is_read_only_where_the_recipe_says_so(write_records, read_examples):
    path = write_records(file_of(ROW))
    for options in ({}, {"train_on_benchmark": False}):
        with pytest.raises(DsmError, match="is a benchmark too; train_on_benchmark: true"):
            read_examples(path, "gaokao_bench", **options)


def test_a_choice_is_answered_by_its_analysis_and_boxed_letter(write_records, read_examples):
    path = write_records(file_of(ROW, ROW))
    example, _ = read_examples(path, "gaokao_bench", train_on_benchmark=True)
    assert example.question == "集合 $A$ 是 (\nA. 1\nB. 2"
    assert example.blocks[0].text == "解: 因为如此.\n应选 B.\n答案是\\boxed{B}。"
    assert (example.answer, example.language, example.format) == ("B", "zh", "cot")


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("13. (5 分) 圆心", "圆心"),
        ("13．圆心", "圆心"),
        ("2010 年", "2010 年"),
        ("1.5 倍", "1.5 倍"),
        ("圆心 1. (5 分)", "圆心 1. (5 分)"),
    ],
)
def test_a_question_loses_its_number_and_score_alone(write_records, read_examples, question, kept):
    path = write_records(file_of({**ROW, "question": question}))
    (example,) = read_examples(path, "gaokao_bench", train_on_benchmark=True)
    assert example.question == kept


@pytest.mark.parametrize(
    ("answer", "boxed"), [("$x^{2}=2$\n", "x^{2}=2"), ("$1$ 或 $2$", "$1$ 或 $2$"), ("-6。", "-6")]
)
def test_a_short_answer_is_boxed_without_its_dollars(write_records, read_examples, answer, boxed):
    path = write_records(file_of({**ROW, "answer": answer}))
    (example,) = read_examples(path, "gaokao_bench", train_on_benchmark=True)
    assert example.answer == boxed
    assert example.blocks[0].text.endswith(f"\n答案是\\boxed{{{boxed}}}。")


@pytest.mark.parametrize(
    ("change", "cause", "omitted"),
    [
        ({"answer": ["A", "B"]}, "no_final_answer", True),
        ({"answer": "解：\n得证。"}, "no_final_answer", True),
        ({"answer": "略" * 300}, "no_final_answer", True),
        ({"answer": ""}, "no_solution", True),
        ({"analysis": " "}, "no_solution", True),
        ({"answer": [1]}, "bad_value", False),
        ({"question": None}, "missing_question", False),
    ],
)
def test_rows_that_are_not_kept_have_their_cause(write_records, fault_of, change, cause, omitted):
    path = write_records(file_of({**ROW, **change}))
    fault = fault_of(path, "gaokao_bench", train_on_benchmark=True)
    assert fault.cause == cause
    assert isinstance(fault, ExampleOmitted) is omitted


@pytest.mark.parametrize(
    ("file", "num_kept", "dropped"),
    [
        ("2010-2022_Math_I_MCQs", 214, {}),
        ("2010-2022_Math_II_MCQs", 218, {}),
        ("2010-2022_Math_I_Fill-in-the-Blank", 81, {}),
        ("2010-2022_Math_II_Fill-in-the-Blank", 86, {}),
        ("2010-2022_Math_I_Open-ended_Questions", 0, {"no_final_answer": 123}),
        ("2010-2022_Math_II_Open-ended_Questions", 0, {"no_final_answer": 122}),
    ],
)
def test_the_published_files_are_read_whole(read_published, file, num_kept, dropped):
    path = f"gaokao_bench_math/{file}.json.gz"
    kept, found = read_published(path, "gaokao_bench", train_on_benchmark=True)
    assert (len(kept), found) == (num_kept, dropped)
