"""The generic reader on message files: OpenAI's form and ShareGPT's, with and without tools."""

import pytest

from dsm_engine.data.example import Block


def openai(*pairs, **fields):
    return {"messages": [{"role": role, "content": text} for role, text in pairs], **fields}


def sharegpt(*pairs, **fields):
    return {"conversations": [{"from": role, "value": text} for role, text in pairs], **fields}


@pytest.mark.parametrize(
    "record",
    [
        openai(("user", "1+1?"), ("assistant", "Two."), answer=2, id="a"),
        sharegpt(("human", "1+1?"), ("gpt", "Two."), answer=2, id="a"),
        openai(("system", " "), ("user", "1+1?"), ("assistant", "Two."), answer=2, id="a"),
        openai(
            ("user", [{"type": "text", "text": "1+1?"}]), ("assistant", "Two."), answer=2, id="a"
        ),
    ],
)
def test_one_question_and_its_answer_make_an_example(write_records, read_examples, record):
    (example,) = read_examples(write_records(record), "jsonl")
    assert (example.question, example.blocks) == ("1+1?", (Block(kind="text", text="Two."),))
    assert (example.answer, example.id, example.format) == ("2", "a", "cot")


def test_a_tools_message_is_what_the_program_before_it_printed(write_records, read_examples):
    record = openai(
        ("user", "求 1+1"),
        ("assistant", "See.\n```python\nprint(2)\n```"),
        ("tool", "2"),
        ("assistant", "It is 2."),
    )
    (example,) = read_examples(write_records(record), "jsonl")
    assert [(block.kind, block.text) for block in example.blocks] == [
        ("text", "See.\n"),
        ("program", "print(2)"),
        ("output", "2"),
        ("text", "It is 2."),
    ]
    assert (example.format, example.language) == ("tir", "zh")


def test_a_system_message_is_treated_as_the_option_says(write_records, read_examples, fault_of):
    path = write_records(sharegpt(("system", "Be brief."), ("human", "1+1?"), ("gpt", "Two.")))
    assert fault_of(path, "jsonl").cause == "system_message"
    (omitted,) = read_examples(path, "jsonl", system="omit")
    (prepended,) = read_examples(path, "jsonl", system="prepend")
    assert (omitted.question, prepended.question) == ("1+1?", "Be brief.\n\n1+1?")


def test_a_question_of_its_own_comes_before_messages(write_records, read_examples):
    record = openai(("user", "other"), question="1+1?", solution="Two.")
    (example,) = read_examples(write_records(record), "jsonl")
    assert (example.question, example.blocks[0].text) == ("1+1?", "Two.")


def test_a_program_under_its_own_key_needs_no_fences(write_records, read_examples, fault_of):
    path = write_records({"question": "1+1?", "program": "ans = 1 + 1", "answer": 2})
    (example,) = read_examples(path, "jsonl", program_key="program")
    assert example.blocks == (Block(kind="program", text="ans = 1 + 1"),)
    assert (example.format, example.answer) == ("pot", "2")
    assert fault_of(path, "jsonl", program_key="code").cause == "missing_answer"


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (openai(), "missing_question"),
        (openai(("assistant", "Two.")), "missing_question"),
        (openai(("user", "q"), ("assistant", "a"), ("user", "q")), "several_turns"),
        (openai(("user", "q"), ("assistant", "a"), ("assistant", "a")), "several_turns"),
        (openai(("user", "q"), ("assistant", None)), "bad_value"),
        (openai(("user", "q"), ("narrator", "a")), "bad_value"),
        (openai(("user", "q"), (["user"], "a")), "bad_value"),
        (openai(("user", [{"type": "image_url"}]), ("assistant", "a")), "bad_value"),
        (openai(("user", "q"), ("assistant", "```python\nx")), "open_fence"),
        ({"messages": ["q"]}, "bad_value"),
        ({"conversations": {"from": "human"}}, "bad_value"),
    ],
)
def test_messages_of_another_shape_are_faults(write_records, fault_of, record, cause):
    assert fault_of(write_records(record), "jsonl").cause == cause
