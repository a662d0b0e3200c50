"""Evaluation: problem files, the transformers backend, results and predictions."""

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsm_engine.data.segments import Segment
from dsm_engine.errors import DsmError
from dsm_engine.evaluation import evaluate as evaluate_module
from dsm_engine.evaluation.backend import Generation, GenerationParams, Prompt
from dsm_engine.evaluation.evaluate import EvaluateRecipe, evaluate
from dsm_engine.evaluation.problems import BenchmarkRecipe, read_problems
from dsm_engine.evaluation.transformers_backend import TransformersBackend
from dsm_engine.recipes import validate_recipe
from dsm_engine.sandbox import SandboxStatus, sandbox_status

STATUS = sandbox_status()
ROWS = [
    {"id": "a", "question": "6 * 7?", "answer": "42", "language": "en", "topic": "product"},
    {"id": "b", "question": "七加八是多少？", "answer": 15, "language": "zh", "level": 2},
]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestProblems:
    def test_rows_and_their_extra_keys_are_read(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "held.jsonl", ROWS)
        first, second = read_problems(BenchmarkRecipe(path=path))
        assert (first.id, first.answer, first.topic) == ("a", "42", "product")
        assert (second.answer, second.language, second.extra) == ("15", "zh", {"level": 2})

    def test_gzip_gsm8k_answers_and_other_keys_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl.gz"
        rows = [{"q": "How many?", "golden": "So 3.\n#### 3"}, {"q": "多少个苹果？", "golden": "4"}]
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
        recipe = BenchmarkRecipe(path=path, question_key="q", answer_key="golden")
        problems = read_problems(recipe)
        assert [p.answer for p in problems] == ["3", "4"]
        assert [p.language for p in problems] == ["en", "zh"]
        assert [p.id for p in problems] == ["x:1", "x:2"]
        assert len(read_problems(recipe, limit=1)) == 1

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "is not JSON"),
            ("[1]", "not a JSON object"),
            ('{"id": "c", "answer": "1"}', "'question' is missing"),
            ('{"id": "c", "question": " ", "answer": "1"}', "'question' is blank"),
            ('{"id": "c", "question": "q"}', "'answer' is missing or blank"),
            ('{"id": "c", "question": "q", "answer": []}', "not text but a list"),
            ('{"id": "c", "question": "q", "answer": "1", "language": "fr"}', "neither"),
            ('{"id": "a", "question": "q", "answer": "1"}', "stands twice"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = write_rows(tmp_path / "p.jsonl", ROWS)
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(DsmError, match=message) as caught:
            read_problems(BenchmarkRecipe(path=path))
        assert str(caught.value).startswith(f"{path}:3:")

    def test_missing_and_empty_files_are_errors(self, tmp_path: Path) -> None:
        with pytest.raises(DsmError, match="cannot be read"):
            read_problems(BenchmarkRecipe(path=tmp_path / "none.jsonl"))
        (tmp_path / "empty.jsonl").touch()
        with pytest.raises(DsmError, match="holds no problem"):
            read_problems(BenchmarkRecipe(path=tmp_path / "empty.jsonl"))


def _text(prompt: Prompt) -> str:
    return "".join(segment.text for segment in prompt)


def _prompt(*texts: str) -> Prompt:
    return tuple(Segment(text=text) for text in texts)


class ScriptedBackend:
    """Answers from a table of (text in the prompt, answer), by mode."""

    def __init__(self, answers: dict[str, str], *, max_characters: int = 10**6) -> None:
        self.answers = answers
        self.max_characters = max_characters
        self.num_generations = 0

    def room(self, prompts: Sequence[Prompt]) -> list[int]:
        return [self.max_characters - len(_text(prompt)) for prompt in prompts]

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        self.num_generations += len(prompts)
        if progress is not None:
            progress(len(prompts))
        return [self._one(_text(prompt), params) for prompt in prompts]

    def _one(self, prompt: str, params: GenerationParams) -> Generation:
        for key, text in self.answers.items():
            if key in prompt:
                calls = params.stop_after_program and text.endswith("```")
                return Generation(text=text, finish_reason="stop" if calls else "eos")
        return Generation(text="", finish_reason="length")


def make_recipe(tmp_path: Path, **values: Any) -> EvaluateRecipe:
    defaults = {
        "model": "unused",
        "benchmarks": [str(write_rows(tmp_path / "held.jsonl", ROWS))],
        "output": str(tmp_path / "out"),
    }
    return validate_recipe({**defaults, **values}, EvaluateRecipe, "test")


class TestEvaluate:
    def test_both_modes_are_answered_graded_and_written(self, tmp_path: Path) -> None:
        if not STATUS.available:
            pytest.skip(STATUS.reason)
        backend = ScriptedBackend(
            {
                "```output\n42": "The answer is \\boxed{42}.",
                "6 * 7?\nPlease integrate": " ```python\nprint(6 * 7)\n```",
                "6 * 7?\nPlease reason": " It is \\boxed{41}.",
                "七加八是多少？\n请结合": " ```python\n1 / 0\n```",
            }
        )
        seen: list[tuple[str, int, int]] = []
        summary = evaluate(
            make_recipe(tmp_path), backend=backend, progress=lambda *call: seen.append(call)
        )
        modes = summary["benchmarks"]["held"]
        assert (modes["cot"]["n"], modes["cot"]["accuracy"]) == (2, 0.0)
        assert modes["cot"]["failures"] == {"wrong": 1, "cut_off": 1}
        assert modes["tool"]["accuracy"] == modes["tool"]["accuracy_program_output"] == 0.5
        assert modes["tool"]["failures"] == {"runtime_error": 1}
        assert modes["tool"]["by_language"]["en"] == {"n": 1, "accuracy": 1.0}
        assert ("held cot", 2, 2) in seen and seen[-1] == ("held tool", 4, 4)

        output = tmp_path / "out"
        assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(summary))
        lines = (output / "predictions.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [(row["mode"], row["id"]) for row in rows] == [
            ("cot", "a"), ("cot", "b"), ("tool", "a"), ("tool", "b"),
        ]  # fmt: skip
        assert rows[2]["correct"] and rows[2]["programs"][0]["stdout"] == "42\n"
        assert rows[3]["programs"][0]["error"] == "ZeroDivisionError: division by zero"
        assert "Runtime errors: ZeroDivisionError" in rows[3]["answer"]
        assert "handover: program_end" in (output / "recipe.yaml").read_text()

    def test_without_a_sandbox_tool_mode_is_null_with_its_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status = SandboxStatus(available=False, reason="bwrap is not installed")
        monkeypatch.setattr(evaluate_module, "sandbox_status", lambda: status)
        summary = evaluate(make_recipe(tmp_path), backend=ScriptedBackend({}))
        assert summary["benchmarks"]["held"]["tool"] is None
        assert summary["benchmarks"]["held"]["cot"]["n"] == 2
        assert summary["skipped"] == {"tool": "bwrap is not installed"}
        assert summary["programs_run_in"] is None

    def test_without_a_sandbox_programs_run_where_that_is_asked_for_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))  # no bwrap there
        backend = ScriptedBackend({"6 * 7?\nPlease integrate": " ```python\nprint(6 * 7)\n```"})
        recipe = make_recipe(tmp_path, modes=["tool"], limit=1)
        summary = evaluate(recipe, backend=backend, unsafe_exec=True)
        assert summary["benchmarks"]["held"]["tool"]["accuracy_program_output"] == 1.0
        assert summary["programs_run_in"] == "no sandbox (--unsafe-exec)"

    def test_no_recipe_can_ask_for_programs_without_a_sandbox(self, tmp_path: Path) -> None:
        for values in ({"unsafe_exec": True}, {"tool": {"unsafe": True}}):
            with pytest.raises(DsmError, match="unsafe"):
                make_recipe(tmp_path, **values)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"benchmark": []}, "did you mean 'benchmarks'"),
            ({"benchmarks": []}, "benchmarks"),
            ({"benchmarks": ["a/x.jsonl", "b/x.jsonl"]}, "two benchmarks are called 'x'"),
            ({"modes": ["tools"]}, "modes"),
            ({"modes": ["cot", "cot"]}, "modes: a mode stands twice"),
            ({"tool": {"timeout_s": float("inf")}}, "timeout_s: .*finite"),
            ({"tool": {"handover": "fence"}}, "handover"),
            ({"limit": 0}, "limit"),
        ],
    )
    def test_a_bad_recipe_is_one_clear_error(
        self, tmp_path: Path, values: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(DsmError, match=message):
            make_recipe(tmp_path, **values)

    def test_a_folder_without_a_model_is_an_error(self, tmp_path: Path) -> None:
        recipe = make_recipe(tmp_path, model=str(tmp_path / "nothing"))
        with pytest.raises(DsmError, match="nothing"):
            evaluate(recipe)
        assert list((tmp_path / "out").iterdir()) == []

    def test_an_output_that_cannot_be_written_is_found_before_the_first_answer(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "taken" / "summary.json").mkdir(parents=True)
        for output, message in (
            ("file", "file: the folder cannot be made"),
            ("file/out", "cannot be"),
            ("taken", r"summary\.json: a folder stands where"),
        ):
            backend = ScriptedBackend({})
            with pytest.raises(DsmError, match=message):
                evaluate(make_recipe(tmp_path, output=str(tmp_path / output)), backend=backend)
            assert backend.num_generations == 0

    def test_a_prompt_that_leaves_no_room_is_named_before_the_first_answer(
        self, tmp_path: Path
    ) -> None:
        rows = [*ROWS, {"id": "long", "question": "x" * 5000, "answer": "1"}]
        benchmark = write_rows(tmp_path / "long.jsonl", rows)
        backend = ScriptedBackend({}, max_characters=4000)
        with pytest.raises(DsmError, match=r"long: problem 'long': its cot prompt is \d+ tokens"):
            evaluate(make_recipe(tmp_path, benchmarks=[str(benchmark)]), backend=backend)
        assert backend.num_generations == 0


class LetterTokenizer:
    """One token a character of a small alphabet; id 0 begins a text, 1 ends it."""

    kind = "sentencepiece"
    fingerprint = "0"
    path = Path("letters")
    alphabet = "`python\nuabcdefg 123()"
    vocab_size = len(alphabet) + 2
    bos_id = 0
    eos_id = 1
    unk_id = None

    def encode(self, text: str, *, continuation: bool = False) -> list[int]:
        return [self.alphabet.index(character) + 2 for character in text]

    def encode_batch(self, texts: Sequence[str], *, continuation: bool = False) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], *, continuation: bool = False) -> str:
        return "".join(self.alphabet[token - 2] for token in ids if token >= 2)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


PROMPTS: list[Prompt] = [
    _prompt("abc"),
    _prompt("a"),
    _prompt("pythonpython", "gfe"),
    _prompt("123 (a)", "b", "c"),
    _prompt("uu"),
]


def open_backend(folder: Path, batch_size: int, **arguments: Any) -> TransformersBackend:
    tokenizer = arguments.pop("tokenizer", LetterTokenizer())
    return TransformersBackend(folder, tokenizer=tokenizer, batch_size=batch_size, device="cpu")


class TestTransformersBackend:
    params = GenerationParams(max_new_tokens=20)

    def test_batches_give_what_single_prompts_give(self, model_folder: Path) -> None:
        single = open_backend(model_folder, 1).generate(PROMPTS, self.params)
        for batch_size in (2, 5):
            assert open_backend(model_folder, batch_size).generate(PROMPTS, self.params) == single
        assert len({generation.text for generation in single}) > 1

    def test_greedy_equals_generate_of_transformers(self, model_folder: Path) -> None:
        import torch
        from transformers import LlamaForCausalLM

        tokenizer = LetterTokenizer()
        model: Any = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
        # The vocabulary is padded: ids past the tokenizer's are no tokens, here nor there.
        forbidden = list(range(tokenizer.vocab_size, 32))
        for prompt, ours in zip(
            PROMPTS, open_backend(model_folder, 5).generate(PROMPTS, self.params), strict=True
        ):
            ids = [0, *tokenizer.encode(_text(prompt))]
            theirs = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=20,
                do_sample=False,
                suppress_tokens=forbidden,
                pad_token_id=1,
            )[0, len(ids) :].tolist()
            ended = 1 in theirs
            kept = theirs[: theirs.index(1)] if ended else theirs
            assert ours.text == tokenizer.decode(kept)
            assert ours.finish_reason == ("eos" if ended else "length")
            assert ours.num_tokens == len(kept)

    def test_text_ends_before_a_stop_string(self, model_folder: Path) -> None:
        backend = open_backend(model_folder, 5)
        free = backend.generate(PROMPTS, self.params)
        stop = free[0].text[3:5]
        stopped = backend.generate(
            PROMPTS, GenerationParams(max_new_tokens=20, stop=("never", stop))
        )
        for generation, whole in zip(stopped, free, strict=True):
            if stop in whole.text:
                assert generation.text == whole.text[: whole.text.index(stop)]
                assert generation.finish_reason == "stop"
            else:
                assert generation == whole
        assert stopped[0].finish_reason == "stop"

    def test_a_closed_program_ends_the_text(self, model_folder: Path) -> None:
        backend = open_backend(model_folder, 5)
        row = _forced(backend, "a```python\n(1)\n```\nabc", stop_after_program=True)
        assert (row.text, row.finish_reason) == ("a```python\n(1)\n```", "stop")
        row = _forced(backend, "a```python\n(1)\n```\nabc", stop_after_program=False)
        assert (row.text, row.finish_reason) == ("a```python\n(1)\n```\nabc", "length")

    def test_a_prompt_never_passes_the_models_positions(self, model_folder: Path) -> None:
        counts: list[int] = []
        prompts: list[Prompt] = [_prompt(text) for text in ("a" * 80, "a" * 63, "a" * 62, "b")]
        backend = open_backend(model_folder, 4)
        assert backend.room(prompts) == [-17, 0, 1, 62]  # of 64, BOS counted
        results = backend.generate(
            prompts, GenerationParams(max_new_tokens=5), progress=counts.append
        )
        assert [r.num_tokens for r in results[:3]] == [0, 0, 1]
        assert [r.finish_reason for r in results[:2]] == ["length", "length"]
        assert sum(counts) == 4

    def test_a_chat_templates_prompt_has_no_bos_and_its_end_ends_the_answer(
        self, model_folder: Path
    ) -> None:
        class ChatTokenizer(LetterTokenizer):
            controls: ClassVar = {"<a>": 2}
            begins_after_control = False

            def control_id(self, name: str) -> int | None:
                return self.controls.get(name)

        backend = TransformersBackend(
            model_folder, tokenizer=ChatTokenizer(), device="cpu", adds_bos=False, answer_end="<a>"
        )
        prompt = (Segment(text="<a>", control=True), Segment(text="ab"))
        assert backend.room([prompt]) == [64 - 3]
        row = _forced(backend, "bc`de", stop_after_program=False)  # the backtick has id 2
        assert (row.text, row.finish_reason) == ("bc", "eos")

    def test_another_models_tokenizer_is_refused(self, model_folder: Path) -> None:
        tokenizer = LetterTokenizer()
        tokenizer.vocab_size = 33
        with pytest.raises(DsmError, match="not the model's tokenizer"):
            open_backend(model_folder, 1, tokenizer=tokenizer)

    def test_a_model_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(DsmError, match="model_type is 'gpt2'"):
            open_backend(tmp_path, 1)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(DsmError, match=r"config\.json: is not JSON"):
            open_backend(tmp_path, 1)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(DsmError, match=r"config\.json: .*expected keys and values"):
            open_backend(tmp_path, 1)
        with pytest.raises(DsmError, match="no Hugging Face model there"):
            open_backend(tmp_path / "none", 1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_hidden_layers": 3}, r"has no weights for model\.layers\.2\..* and 8 more"),
            ({"num_hidden_layers": 1}, r"no place for: model\.layers\.1\."),
            ({"intermediate_size": 64}, r"another shape than config\.json .*mlp\.down_proj"),
            ({"hidden_size": "wide"}, "cannot be loaded: .*hidden_size"),
            ({"num_attention_heads": 0}, "cannot be loaded: ZeroDivisionError"),
        ],
    )
    def test_weights_that_are_not_the_configs_are_refused_in_one_line(
        self,
        model_folder: Path,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        change: dict[str, Any],
        message: str,
    ) -> None:
        folder = shutil.copytree(model_folder, tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        capfd.readouterr()
        with pytest.raises(DsmError, match=message) as caught:
            open_backend(folder, 1)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{folder}: ")
        assert capfd.readouterr() == ("", "")

    def test_a_damaged_weight_file_is_refused(self, model_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(model_folder, tmp_path / "model")
        weights = folder / "model.safetensors"
        whole = weights.read_bytes()
        for content in (b"", b"garbage", whole[:-8], whole[:100]):
            weights.write_bytes(content)
            with pytest.raises(DsmError, match="the model cannot be loaded") as caught:
                open_backend(folder, 1)
            assert "\n" not in str(caught.value)

    def test_a_tied_head_need_not_be_there(self, model_folder: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(model_folder, tmp_path / "model")
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        del tensors["lm_head.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(DsmError, match=r"has no weights for lm_head\.weight; "):
            open_backend(folder, 1)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        open_backend(folder, 1)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, weights, metadata={"format": "pt"})
        open_backend(folder, 1)


def _forced(backend: TransformersBackend, text: str, *, stop_after_program: bool) -> Any:
    """What becomes of a row into which these characters are generated."""
    from dsm_engine.evaluation.transformers_backend import _Row

    tokens = LetterTokenizer().encode(text)
    params = GenerationParams(max_new_tokens=99, stop_after_program=stop_after_program)
    row = _Row([0])
    row.max_new = len(tokens)
    for token in tokens:
        if not row.finished:
            backend._append(row, token, params)
    return row
