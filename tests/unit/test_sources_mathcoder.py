"""MathCoder: typed blocks, as converted and as published."""

import pytest

from dsm_engine.data.example import Block

PARTS = [
    ("text", "Add."),
    ("code", "x = 1 + 2\nx"),
    ("execution", "3"),
    ("text", "So it is"),
    ("text", "\\( \\boxed{3} \\)."),
]
BLOCKS = (
    Block(kind="text", text="Add."),
    Block(kind="program", text="x = 1 + 2\nx"),
    Block(kind="output", text="3"),
    Block(kind="text", text="So it is\n\\( \\boxed{3} \\)."),
)
ROW = {
    "source": "mathcoder/SVAMP",
    "question": "What is 1 + 2?",
    "blocks": [{"role": role, "content": content} for role, content in PARTS],
    "answer": 3.0,
}
PUBLISHED = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "content": ""}]},
        {"role": "user", "content": [{"type": "text", "content": "What is 1 + 2?"}]},
        {
            "role": "assistant",
            "content": [{"type": type, "content": content} for type, content in PARTS],
        },
    ]
}


@pytest.mark.parametrize("record", [ROW, PUBLISHED])
def test_blocks_keep_their_order_and_prose_its_lines(write_records, read_examples, record):
    (example,) = read_examples(write_records(record), "mathcoder")
    assert (example.question, example.blocks) == ("What is 1 + 2?", BLOCKS)
    assert (example.answer, example.format, example.language) == ("3", "tir", "en")
    assert (example.source, example.licence) == ("mathcoder", "Apache-2.0")


def test_prose_alone_is_a_chain_of_thought(write_records, read_examples):
    record = {**ROW, "blocks": ROW["blocks"][-2:], "answer": None}
    (example,) = read_examples(write_records(record), "mathcoder")
    assert (example.format, example.answer) == ("cot", "3")


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({**ROW, "blocks": None}, "bad_value"),
        ({**ROW, "blocks": []}, "missing_answer"),
        ({**ROW, "blocks": ["x"]}, "bad_value"),
        ({**ROW, "blocks": [{"role": "program", "content": "x"}]}, "bad_value"),
        ({**ROW, "blocks": [{"role": "text", "content": None}]}, "bad_value"),
        ({**ROW, "blocks": [{"content": "x"}]}, "bad_value"),
        ({**ROW, "blocks": [{"role": "text", "content": "a\n```python"}]}, "fence_in_text"),
        ({**ROW, "question": ""}, "missing_question"),
        ({"messages": [message("user", "q")]}, "bad_value"),
        ({"messages": "q"}, "bad_value"),
        ({"messages": [message("user", 5), message("assistant", [])]}, "bad_value"),
        ({"messages": [message("user", "q")] * 2 + [message("assistant", [])]}, "several_turns"),
        (
            {"messages": [message("system", "Be brief."), *PUBLISHED["messages"][1:]]},
            "system_message",
        ),
    ],
)
def test_rows_of_another_shape_are_faults(write_records, fault_of, record, cause):
    assert fault_of(write_records(record), "mathcoder").cause == cause


def test_the_published_answers_are_read_but_for_one(read_published):
    kept, dropped = read_published("tir_mathcoder/tir.jsonl.gz", "mathcoder")
    assert (len(kept), dropped) == (8600, {"fence_in_text": 1})
    assert len({example.id for example in kept}) == 8600
    assert sum(example.format == "tir" for example in kept) == 8505
    assert all(example.answer for example in kept)


def test_sources_that_are_not_chosen_are_omitted(write_records, read_examples, fault_of):
    path = write_records(ROW)
    assert len(read_examples(path, "mathcoder", sources=["mathcoder/SVAMP"])) == 1
    assert fault_of(path, "mathcoder", sources=["mathcoder/simuleq"]).cause == "source_not_chosen"
