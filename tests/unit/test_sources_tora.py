"""ToRA: the fences of its answers, as messages or as one string."""

import pytest

from dsm_engine.data.example import Block

TEXT = "Add.\n\n```python\nprint(1 + 2)\n```\n```output\n3\n```\nThe answer is $\\boxed{3}$."
BLOCKS = (
    Block(kind="text", text="Add.\n\n"),
    Block(kind="program", text="print(1 + 2)"),
    Block(kind="output", text="3"),
    Block(kind="text", text="The answer is $\\boxed{3}$."),
)
ROW = {
    "dataset": "tora-corpus-math",
    "level": "Level 5",
    "id": "math-train-1149-0",
    "gt": "3",
    "gt_cot": "It is $\\boxed{3}$.",
    "messages": [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": TEXT},
    ],
}


def test_messages_become_prose_program_and_output(write_records, read_examples):
    (example,) = read_examples(write_records(ROW), "tora")
    assert (example.question, example.blocks) == ("What is 1 + 2?", BLOCKS)
    assert (example.answer, example.format, example.language) == ("3", "tir", "en")
    assert (example.id, example.licence) == ("tora/math-train-1149-0", "MIT")


@pytest.mark.parametrize(
    "record",
    [
        {"question": "What is 1 + 2?", "output": TEXT},
        {"problem": "What is 1 + 2?", "solution": TEXT},
        {"question": "What is 1 + 2?", "code": [TEXT]},
    ],
)
def test_one_string_is_read_as_well(write_records, read_examples, record):
    (example,) = read_examples(write_records(record), "tora")
    assert (example.question, example.blocks) == ("What is 1 + 2?", BLOCKS)
    assert example.answer == "3"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"messages": ROW["messages"][:1]}, "missing_answer"),
        ({"messages": ROW["messages"][1:]}, "missing_question"),
        ({"messages": ROW["messages"] * 2}, "several_turns"),
        ({"messages": "What?"}, "bad_value"),
        ({"messages": None}, "missing_question"),
        ({"messages": None, "question": "q"}, "missing_answer"),
        ({"messages": None, "question": "q", "code": [TEXT, TEXT]}, "bad_value"),
        ({"messages": None, "question": "q", "output": "```python\nx"}, "open_fence"),
    ],
)
def test_rows_of_another_shape_are_faults(write_records, fault_of, change, cause):
    assert fault_of(write_records({**ROW, **change}), "tora").cause == cause


def test_the_published_examples_are_read_whole(read_published):
    kept, dropped = read_published("tora_examples/examples.jsonl.gz", "tora")
    assert (len(kept), dropped) == (30, {})
    assert sum(example.format == "tir" for example in kept) == 25  # the others use no tool
    assert all(example.answer for example in kept)
