"""Hugging Face chat templates: the ids of transformers, supervision from the structure."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsm_engine.data.example import Block, Example, ExampleFault, Format
from dsm_engine.data.preprocess import preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.segments import Segment
from dsm_engine.data.templates import Template, load_template
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.data.tokenizers import Tokenizer, encode_segments, load_tokenizer
from dsm_engine.errors import DsmError
from tests.chat_tokenizers import CHATML, PIPELINES, write_tokenizer

LLAMA_3 = """\
{%- set ns = namespace(first=true) %}
{%- for message in messages %}
    {%- if ns.first %}
        {{- '<|begin_of_text|>' }}
        {%- set ns.first = false %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant') -}}
{% elif message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{% else %}
{% generation %}
{{- ' ' + message['content'] + eos_token -}}
{% endgeneration %}
{% endif %}
{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama_3": LLAMA_3, "mistral": MISTRAL}
ENDS = {"chatml": "<|im_end|>", "llama_3": "<|eot_id|>", "mistral": "</s>"}
FENCED = "```python\nprint(3 + 4)\n```"
OUTPUT = "\n```output\n7\n```\n"


def text(value: str) -> Block:
    return Block(kind="text", text=value)


ANSWERS: dict[Format, tuple[Block, ...]] = {
    "cot": (text(" The answer is \\boxed{7}.\n"),),
    "pot": (Block(kind="program", text="print(3 + 4)"),),
    "tir": (
        Block(kind="program", text="print(3 + 4)"),
        Block(kind="output", text="7"),
        text("The answer is \\boxed{7}."),
    ),
}
CONTENTS = {
    "cot": "The answer is \\boxed{7}.",
    "pot": FENCED,
    "tir": f"{FENCED}{OUTPUT}The answer is \\boxed{{7}}.",
}


@pytest.fixture(scope="module", params=list(PIPELINES))
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("own"), "byte_level"))


@pytest.fixture(scope="module")
def in_transformers(byte_level: Tokenizer):
    """A folder with a ChatML template, and the byte-level tokenizer as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    (byte_level.path.parent / "chat.jinja").write_text(CHATML)
    return byte_level.path.parent, PreTrainedTokenizerFast(
        tokenizer_file=str(byte_level.path), bos_token="<s>", eos_token="</s>"
    )


def load(folder: Path, jinja: str, tokenizer: Tokenizer, **values) -> Template:
    """The chat template as a YAML file names it."""
    (folder / "chat.jinja").write_text(jinja)
    recipe = {
        "name": "test",
        "chat_template": "chat.jinja",
        "prompt": "{question}",
        "program": "```python\n{code}\n```",
        "output": OUTPUT.replace("7", "{text}"),
    }
    (folder / "test.yaml").write_text(json.dumps(recipe | values))
    return load_template(folder / "test.yaml", tokenizer)


def make_example(format: Format = "cot", question: str = "3 + 4?", **values) -> Example:
    values = {"blocks": ANSWERS[format], "language": "en", "answer": "7"} | values
    return Example(id="x", question=question, format=format, source="test", **values)


def ids_of(tokenizer: Tokenizer, segments: list[Segment]) -> list[int]:
    return [token for ids in encode_segments(tokenizer, segments) for token in ids]


def supervised_texts(tokenizer: Tokenizer, segments: list[Segment]) -> list[str]:
    """Neighbouring supervised segments as one text each."""
    texts, open_text = [], False
    for segment in segments:
        if segment.supervised:
            texts.append(texts.pop() + segment.text if open_text else segment.text)
        open_text = segment.supervised
    return texts


@pytest.mark.parametrize("format", ["cot", "pot", "tir"])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_ids_are_those_of_transformers(tmp_path: Path, folder: Path, name: str, format: Format):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    ours = load_tokenizer(folder)
    template = load(tmp_path, TEMPLATES[name], ours)
    question = "小明 has 12 apples.\nHow many?"
    messages = [{"role": "user", "content": question}]
    options = {"chat_template": TEMPLATES[name], "tokenize": True, "return_dict": False}
    prompt = template.prompt_segments(question, "en", format)
    assert ids_of(ours, prompt) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, **options
    )
    messages.append({"role": "assistant", "content": CONTENTS[format]})
    segments = template.render(make_example(format, question))
    assert ids_of(ours, segments) == theirs.apply_chat_template(messages, **options)
    assert segments[: len(prompt)] == prompt


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_answer_and_its_end_are_supervised_and_interpreter_output_is_not(
    tmp_path: Path, byte_level: Tokenizer, name: str
):
    template = load(tmp_path, TEMPLATES[name], byte_level)
    end, opens = ENDS[name], " " if name == "mistral" else ""
    assert (template.answer_end, template.answer_prefix) == (end, opens)
    for format in ("cot", "pot"):
        segments = template.render(make_example(format))
        assert supervised_texts(byte_level, segments) == [opens + CONTENTS[format] + end]
    segments = template.render(make_example("tir"))
    assert supervised_texts(byte_level, segments) == [
        opens + FENCED,
        "The answer is \\boxed{7}." + end,
    ]
    assert OUTPUT in [segment.text for segment in segments if not segment.supervised]


def test_supervision_is_that_of_a_templates_own_generation_marks(
    tmp_path: Path, byte_level: Tokenizer
):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(byte_level.path), bos_token="<s>", eos_token="</s>"
    )
    messages = [
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": CONTENTS["cot"]},
    ]
    expected = theirs.apply_chat_template(
        messages, chat_template=MISTRAL, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    segments = load(tmp_path, MISTRAL, byte_level).render(make_example())
    parts = encode_segments(byte_level, segments)
    found = [
        int(segment.supervised) for segment, ids in zip(segments, parts, strict=True) for _ in ids
    ]
    assert found == expected


def test_control_tokens_in_the_users_text_stay_text(tmp_path: Path, folder: Path):
    tokenizer = load_tokenizer(folder)
    template = load(tmp_path, CHATML, tokenizer)
    controls = set(tokenizer.controls.values()) - {tokenizer.unk_id}
    nasty = "a <|im_end|> and a <s>"
    plain = ids_of(tokenizer, template.render(make_example()))
    ids = ids_of(tokenizer, template.render(make_example(question=nasty, blocks=(text(nasty),))))
    assert [token for token in ids if token in controls] == [
        token for token in plain if token in controls
    ]
    assert tokenizer.decode(ids).count(nasty) == 2


@settings(max_examples=60)
@given(question=st.text("ab 1\n?<|_小\t`"), answer=st.text("ab 1\n.<s>小 `{}", min_size=1))
def test_any_text_has_the_ids_of_transformers(
    in_transformers, byte_level: Tokenizer, question: str, answer: str
):
    folder, theirs = in_transformers
    template = load_template(folder / "chat.jinja", byte_level)
    assume(question.strip() and answer.strip() and "<s>" not in answer)
    segments = template.render(make_example(question=question, blocks=(text(answer),)))
    messages = [
        {"role": "user", "content": question.strip()},
        {"role": "assistant", "content": answer.strip()},
    ]
    assert ids_of(byte_level, segments) == theirs.apply_chat_template(
        messages, chat_template=CHATML, return_dict=False
    )


def test_placeholders_and_jinja_in_a_question_are_plain_text(tmp_path: Path, byte_level: Tokenizer):
    question = "Let {x} be {{ messages }} and {suffix} {% raw %}"
    template = load(tmp_path, CHATML, byte_level)
    segments = template.prompt_segments(question, "en", "cot")
    assert f"user\n{question}" in [segment.text for segment in segments]


def test_the_template_beside_the_tokenizer_is_found_in_either_file(tmp_path: Path):
    for kind in ("config", "list", "file"):
        (tmp_path / kind).mkdir()
    entries = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    write_tokenizer(tmp_path / "config", "byte_level", config={"chat_template": CHATML})
    write_tokenizer(tmp_path / "list", "byte_level", config={"chat_template": entries})
    write_tokenizer(tmp_path / "file", "byte_level", config={"chat_template": "unused"})
    (tmp_path / "file" / "chat_template.jinja").write_text(CHATML)
    rendered = []
    for kind in ("config", "list", "file"):
        tokenizer = load_tokenizer(tmp_path / kind)
        rendered.append(load_template("tokenizer", tokenizer).render(make_example()))
        (tmp_path / "saved").mkdir(exist_ok=True)
        tokenizer.save(tmp_path / "saved")
        saved = load_tokenizer(tmp_path / "saved")
        rendered.append(load_template("tokenizer", saved).render(make_example()))
    path = tmp_path / "file" / "chat_template.jinja"
    rendered.append(load_template(path, load_tokenizer(tmp_path / "config")).render(make_example()))
    assert len({repr(segments) for segments in rendered}) == 1


def test_the_packages_chat_template_has_the_suffixes_of_deepseekmath(tmp_path: Path):
    write_tokenizer(tmp_path, "byte_level", config={"chat_template": CHATML})
    template = load_template("chat", load_tokenizer(tmp_path))
    assert template.suffixes == load_template("deepseekmath").suffixes
    (user,) = [s.text for s in template.prompt_segments("q", "zh", "tir") if "user" in s.text]
    assert user.startswith("user\nq\n请结合自然语言和Python")


def test_variables_reach_the_template_and_the_fingerprint(tmp_path: Path, byte_level: Tokenizer):
    jinja = CHATML.replace("You help.", "' + date_string + '")
    old, new = (
        load(tmp_path, jinja, byte_level, variables={"date_string": date})
        for date in ("1 May 2024", "2 May 2024")
    )
    assert "system\n1 May 2024" in [s.text for s in old.prompt_segments("q", "en", "cot")]
    other = load(tmp_path, jinja + "\n", byte_level, variables={"date_string": "1 May 2024"})
    assert len({old.fingerprint, new.fingerprint, other.fingerprint}) == 3


def test_special_tokens_of_the_config_reach_the_template(tmp_path: Path):
    from transformers import PreTrainedTokenizerFast

    config = {"pad_token": "<|eot_id|>", "sep_token": {"content": "<|begin_of_text|>"}}
    ours = load_tokenizer(write_tokenizer(tmp_path, "byte_level", config=config))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|eot_id|>"},
        sep_token="<|begin_of_text|>",
    )
    jinja = "{{ pad_token }}{{ sep_token ~ bos_token }}" + CHATML
    messages = [{"role": "user", "content": "3 + 4?"}]
    messages.append({"role": "assistant", "content": CONTENTS["cot"]})
    segments = load(tmp_path, jinja, ours).render(make_example())
    expected = theirs.apply_chat_template(messages, chat_template=jinja, return_dict=False)
    assert ids_of(ours, segments) == expected


@pytest.mark.parametrize("written", ["{{ cls_token }}", "{{ 'a' ~ mask_token }}"])
def test_a_special_token_that_is_not_there_cannot_be_written(tmp_path: Path, written: str):
    folder = write_tokenizer(tmp_path, "byte_level", config={"mask_token": "[MASK]"})
    with pytest.raises(DsmError, match=r"it writes (cls|mask)_token, and"):
        load(tmp_path, written + CHATML, load_tokenizer(folder))
    jinja = "{% if cls_token is defined or cls_token %}x{% endif %}" + CHATML
    load(tmp_path, jinja, load_tokenizer(folder))
    load(tmp_path, "{{ cls_token }}" + CHATML, load_tokenizer(folder), variables={"cls_token": "c"})


def test_todays_date_is_a_day_and_part_of_the_fingerprint(
    tmp_path: Path, byte_level: Tokenizer, monkeypatch
):
    jinja = CHATML.replace("You help.", "' + strftime_now('%d %b %Y %H:%M:%S') + '")
    loaded = {}
    for number, (day, hour) in enumerate(((1, 0), (1, 23), (2, 0))):

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(2024, 5, day, hour, 59)  # noqa: B023

        monkeypatch.setattr("dsm_engine.data.chat_template.datetime", Clock)
        loaded[number] = load(tmp_path, jinja, byte_level)
        plain = load(tmp_path, CHATML, byte_level).fingerprint
        assert loaded.setdefault("plain", plain) == plain
    assert loaded[0].fingerprint == loaded[1].fingerprint != loaded[2].fingerprint
    texts = [segment.text for segment in loaded[1].prompt_segments("q", "en", "cot")]
    assert "system\n01 May 2024 00:00:00" in texts


def test_a_list_of_chat_templates_that_is_none_is_refused(tmp_path: Path):
    for entries in (["x"], [None], [{"name": "default", "template": 3}]):
        write_tokenizer(tmp_path, "byte_level", config={"chat_template": entries})
        with pytest.raises(DsmError, match="chat_template: expected"):
            load_template("tokenizer", load_tokenizer(tmp_path))


THINKING = CHATML.replace(
    "message['content'] +",
    "('<s>' if message['role'] == 'assistant' else '') + message['content'] +",
)


@pytest.mark.parametrize(
    ("jinja", "values", "message"),
    [
        ("{% for m in messages %}{{ m['role'] }}</s>{% endfor %}", {}, "changes the question"),
        (CHATML.replace("message['content']", "message['content'] | upper"), {}, "changes the q"),
        (CHATML.replace("message['content']", "message['content'] * 2"), {}, "repeats the q"),
        ("{{ messages[0]['content'] }}</s>", {}, "drops or changes the answer"),
        ("{{ raise_exception('no\nusers') }}", {}, "refuses a conversation .*: no users"),
        ("{{ messages[0].content.nothing() }}", {}, "refuses a conversation"),
        ("{{ ''.__class__.__mro__ }}", {}, "refuses a conversation"),
        ("{% if %}", {}, "is no chat template"),
        (CHATML + "{% if add_generation_prompt %}Yes?{% endif %}", {}, "'Yes\\?' and"),
        (CHATML.replace("<|im_end|>", ""), {}, "no control token of this tokenizer"),
        (THINKING, {}, "writes '<s>' between"),
        (CHATML, {"answer_prefix": " "}, "answer_prefix: a chat template writes its own"),
        (CHATML, {"chat_template": "nowhere.jinja"}, "nowhere.jinja: cannot be read"),
    ],
)  # fmt: skip
def test_a_template_that_will_not_do_is_one_clear_line(
    tmp_path: Path, byte_level: Tokenizer, jinja: str, values: dict, message: str
):
    with pytest.raises(DsmError, match=message) as caught:
        load(tmp_path, jinja, byte_level, **values)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_a_template_needs_is_said(tmp_path: Path, byte_level: Tokenizer):
    with pytest.raises(DsmError, match="needs a tokenizer"):
        load_template("chat")
    with pytest.raises(DsmError, match=r"has no chat_template\.jinja"):
        load_template("tokenizer", byte_level)
    with pytest.raises(DsmError, match="variables: are those of a chat template"):
        load(tmp_path, "", byte_level, chat_template=None, variables={"a": 1})


def test_a_token_that_swallows_whitespace_is_refused(tmp_path: Path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, "byte_level", rstrip=True))
    with pytest.raises(DsmError, match="swallows the whitespace"):
        load(tmp_path, CHATML, tokenizer)


def test_a_text_the_template_treats_otherwise_is_a_fault(tmp_path: Path, byte_level: Tokenizer):
    jinja = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    template = load(tmp_path, jinja, byte_level)
    assert template.render(make_example())
    with pytest.raises(ExampleFault, match="drops or changes text") as caught:
        template.render(make_example(blocks=(text("So</think>7"),)))
    assert caught.value.cause == "template_changes_text"
    with pytest.raises(DsmError, match="changes the question"):
        template.prompt_segments("a</think>b", "en", "cot")
    jinja = "{% if '!' in messages[0].content %}{{ raise_exception('loud') }}{% endif %}" + CHATML
    with pytest.raises(ExampleFault, match="loud") as caught:
        load(tmp_path, jinja, byte_level).render(make_example(question="What!"))
    assert caught.value.cause == "template_refuses"


def test_preprocessing_writes_what_the_template_says(tmp_path: Path):
    write_tokenizer(tmp_path, "byte_level", config={"chat_template": CHATML})
    row = {"question": "3 + 4?", "answer": CONTENTS["tir"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    report = preprocess(
        PreprocessRecipe.model_validate(
            {
                "output": tmp_path / "out",
                "tokenizer": tmp_path,
                "template": "chat",
                "sources": [{"reader": "jsonl", "path": tmp_path / "rows.jsonl"}],
            }
        )
    )
    dataset, tokenizer = TokenizedDataset(report.output), load_tokenizer(tmp_path)
    template = load_template("chat", tokenizer)
    segments = template.render(make_example("tir"))
    ids = dataset.document(0).tolist()
    assert ids == ids_of(tokenizer, segments)
    end = tokenizer.control_id("<|im_end|>")
    spans = [ids[begin:close] for begin, close in dataset.spans(0).tolist()]
    assert [tokenizer.decode(span) for span in spans] == [FENCED, "The answer is \\boxed{7}."]
    assert spans[-1][-1] == end and end not in spans[0]
    assert dataset.manifest["template"]["fingerprint"] == template.fingerprint
