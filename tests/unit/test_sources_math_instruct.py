"""MathInstruct: its 13 sets by their names, chains with boxed answers, programs without fences."""

import orjson
import pytest

from dsm_engine.data.example import Block, ExampleOmitted
from dsm_engine.errors import DsmError

COT = {
    "source": "data/CoT/gsm_rft.json",
    "instruction": "Ann has 2 apples and gets 3.50 more. How many?",
    "output": "2 + 3.50 = 5.50.\nThe answer is 5.50",
}
POT = {
    "source": "data/PoT/gsm_gpt4.json",
    "instruction": "What is 1 + 2? Let's write a Python program.",
    "output": 'pattern = "\\d"\nprint(1 + 2)',
}


def test_a_chain_gets_its_closing_answer_boxed(write_records, read_examples):
    (example,) = read_examples(write_records(COT), "math_instruct")
    text = "2 + 3.50 = 5.50.\nThe answer is \\boxed{5.50}."
    assert example.blocks == (Block(kind="text", text=text),)
    assert (example.answer, example.format, example.language) == ("5.50", "cot", "en")
    assert example.id.startswith("math_instruct/CoT/gsm_rft/")
    assert (example.source, example.licence) == ("math_instruct", "MIT")


def test_a_chain_with_a_box_stays_as_it_is(write_records, read_examples):
    output = "So $x = \\boxed{\\frac{1}{2}}$. The answer is $\\frac{1}{2}$"
    (example,) = read_examples(write_records({**COT, "output": output}), "math_instruct")
    assert (example.blocks[0].text, example.answer) == (output, "\\frac{1}{2}")


@pytest.mark.parametrize(
    "output", ["I do not know.", "The answer is", "The answer is 5\nor not.", "The answer is $$."]
)
def test_a_chain_that_states_no_answer_is_omitted(write_records, fault_of, output):
    fault = fault_of(write_records({**COT, "output": output}), "math_instruct")
    assert isinstance(fault, ExampleOmitted)
    assert fault.cause == "no_final_answer"


def test_a_program_is_a_program_and_the_question_asks_for_none(write_records, read_examples):
    (example,) = read_examples(write_records(POT), "math_instruct")
    assert example.blocks == (Block(kind="program", text=POT["output"]),)
    assert (example.question, example.answer, example.format) == ("What is 1 + 2?", "", "pot")


def test_a_program_in_fences_loses_them(write_records, read_examples):
    record = {**POT, "output": "```python\nprint(3)\n```"}
    (example,) = read_examples(write_records(record), "math_instruct")
    assert example.blocks == (Block(kind="program", text="print(3)"),)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"output": "The answer is three."}, "not_python"),
        ({"output": "print(1"}, "not_python"),
        ({"output": "x = 1\0"}, "not_python"),
        ({"output": "\n"}, "missing_answer"),
        ({"instruction": None}, "missing_question"),
        ({"source": "data/TIR/gsm.json"}, "bad_value"),
        ({"source": None}, "bad_value"),
        ({"source": 5}, "bad_value"),
    ],
)
def test_rows_of_another_shape_are_faults(write_records, fault_of, change, cause):
    fault = fault_of(write_records({**POT, **change}), "math_instruct")
    assert fault.cause == cause
    assert not isinstance(fault, ExampleOmitted)


def test_parts_that_are_not_chosen_are_omitted(write_records, read_examples, fault_of):
    path = write_records(orjson.dumps([POT, COT]), name="MathInstruct.json")
    assert [e.format for e in read_examples(path, "math_instruct")] == ["pot", "cot"]
    fault = fault_of(path, "math_instruct", parts=["PoT/gsm_gpt4"])
    assert isinstance(fault, ExampleOmitted)
    assert fault.cause == "part_not_chosen"


def test_a_part_that_does_not_exist_is_an_error_of_the_recipe(write_records, read_examples):
    with pytest.raises(DsmError, match="options of 'math_instruct': parts"):
        read_examples(write_records(POT), "math_instruct", parts=["PoT/gsm"])
