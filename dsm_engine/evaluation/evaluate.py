"""A model's answers to benchmarks, with and without tools: asked for, graded, written down."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, PositiveInt, field_validator

from dsm_engine.data.templates import Template, load_template
from dsm_engine.data.tokenizers import Tokenizer, load_tokenizer
from dsm_engine.errors import DsmError
from dsm_engine.evaluation.backend import Backend, GenerationParams, Prompt
from dsm_engine.evaluation.problems import BenchmarkRecipe, Problem, read_problems
from dsm_engine.evaluation.tool_loop import Answer, Handover, answer_with_tools
from dsm_engine.evaluation.transformers_backend import Precision, TransformersBackend
from dsm_engine.files import atomic_file, write_json
from dsm_engine.grading import extract_answer, grade, grader_name
from dsm_engine.programs import final_output
from dsm_engine.recipes import Section, dump_yaml
from dsm_engine.sandbox import Sandbox, sandbox_status
from dsm_engine.targets import prepare_targets

Mode = Literal["cot", "tool"]
Progress = Callable[[str, int, int], None]
_FILES = ("predictions.jsonl", "recipe.yaml", "summary.json")
_FORMATS = {"cot": "cot", "tool": "tir"}


class ToolRecipe(Section):
    """How programs are called for and run."""

    handover: Handover = "program_end"
    """What a call is. `program_end`: a program block that has just been closed (output blocks
    carry no loss in training, so a model never learns to open one). `output_fence`: as published,
    the model's writing ```` ```output ````."""
    rounds: PositiveInt = 2
    """Rounds of generation: with two, one result can be read back."""
    timeout_s: float = Field(default=10.0, gt=0)
    memory_mib: int = Field(default=512, ge=64)
    workers: PositiveInt = 2
    """Programs that run at a time."""


class EvaluateRecipe(Section):
    """Which model answers what, and how."""

    model: Path
    """A Hugging Face folder; its tokenizer stands in it."""
    tokenizer: Path | None = None
    """Where it does not."""
    template: str = "deepseekmath"
    """As in the recipe of preprocessing; `tokenizer` is the chat template beside the tokenizer."""
    benchmarks: list[BenchmarkRecipe] = Field(min_length=1)
    """Paths, or sections with a path and more."""
    modes: list[Mode] = Field(default=["cot", "tool"], min_length=1)
    max_new_tokens: PositiveInt = 1024
    """A round. Where fewer fit behind a prompt in the model's max_position_embeddings, an answer
    ends with the last that fits (`finish_reason` `length`); a prompt that fits none is an error."""
    batch_size: PositiveInt = 16
    limit: PositiveInt | None = None
    """Only so many problems of each benchmark."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Precision = "fp32"
    output: Path
    """The folder of predictions.jsonl, summary.json and recipe.yaml."""
    tool: ToolRecipe = ToolRecipe()

    @field_validator("modes")
    @classmethod
    def _each_once(cls, value: list[Mode]) -> list[Mode]:
        if len(set(value)) < len(value):
            raise ValueError("a mode stands twice")
        return value

    @field_validator("benchmarks")
    @classmethod
    def _distinct(cls, value: list[BenchmarkRecipe]) -> list[BenchmarkRecipe]:
        twice = [name for name, count in Counter(b.name for b in value).items() if count > 1]
        if twice:
            raise ValueError(f"two benchmarks are called {twice[0]!r}; give one a name")
        return value


def evaluate(
    recipe: EvaluateRecipe,
    *,
    progress: Progress | None = None,
    backend: Backend | None = None,
    unsafe_exec: bool = False,
) -> dict[str, Any]:
    """Answers and grades every benchmark in every mode; returns what summary.json holds.

    `{"benchmarks": {NAME: {MODE: {"n", "accuracy", ...} or None}}, "skipped": {MODE: reason}}`:
    tool mode is None where no program can be run. `progress` gets (what, done, total), counted in
    generations.
    `backend` stands in for the recipe's model. `unsafe_exec` runs programs without bubblewrap; it
    is no key of the recipe, so that no file can ask for it. Raises DsmError for faults of the
    recipe's files.
    """
    benchmarks = {b.name: read_problems(b, limit=recipe.limit) for b in recipe.benchmarks}
    prepare_targets(*(recipe.output / name for name in _FILES))
    tokenizer = _tokenizer(recipe, needed=backend is None)
    template = load_template(recipe.template, tokenizer)
    skipped: dict[str, str] = {}
    if "tool" in recipe.modes and not unsafe_exec:
        status = sandbox_status()
        if not status.available:
            skipped["tool"] = status.reason
    if backend is None:
        assert tokenizer is not None
        backend = TransformersBackend(
            recipe.model,
            tokenizer=tokenizer,
            adds_bos=template.adds_bos,
            answer_end=template.answer_end,
            device=recipe.device,
            batch_size=recipe.batch_size,
            precision=recipe.precision,
        )
    modes: list[Mode] = [mode for mode in recipe.modes if mode not in skipped]
    _check_prompts(benchmarks, modes, template, backend)
    results: dict[str, dict[str, Any]] = {name: {} for name in benchmarks}
    predictions: list[dict[str, Any]] = []
    tool_runs = "tool" in recipe.modes and not skipped
    open_sandbox = _open_sandbox(recipe.tool, unsafe_exec) if tool_runs else nullcontext()
    with open_sandbox as sandbox:
        for name, problems in benchmarks.items():
            for mode in recipe.modes:
                if mode in skipped:
                    results[name][mode] = None
                    continue
                rounds = recipe.tool.rounds if mode == "tool" else 1
                count = _counter(progress, f"{name} {mode}", len(problems) * rounds)
                started = time.monotonic()
                answers = _answers(recipe, problems, mode, template, backend, sandbox, count)
                seconds = time.monotonic() - started
                rows = [_graded(name, mode, *pair) for pair in zip(problems, answers, strict=True)]
                predictions += rows
                results[name][mode] = _summary(rows, mode) | {"seconds": round(seconds, 2)}
    summary = {
        "benchmarks": results,
        "skipped": skipped,
        "model": str(recipe.model),
        "template": {"name": template.name, "fingerprint": template.fingerprint},
        "grader": grader_name(),
        "programs_run_in": _place(unsafe_exec) if tool_runs else None,
    }
    _write(recipe, predictions, summary)
    return summary


def _tokenizer(recipe: EvaluateRecipe, *, needed: bool) -> Tokenizer | None:
    """The recipe's, which a backend of the caller's may do without."""
    if not needed and recipe.tokenizer is None:
        return None
    return load_tokenizer(recipe.tokenizer or recipe.model)


def _prompts(problems: Sequence[Problem], mode: Mode, template: Template) -> list[Prompt]:
    format = _FORMATS[mode]
    return [tuple(template.prompt_segments(p.question, p.language, format)) for p in problems]


def _check_prompts(
    benchmarks: dict[str, list[Problem]],
    modes: Sequence[Mode],
    template: Template,
    backend: Backend,
) -> None:
    """That each prompt leaves the model room for an answer, before the first is answered."""
    for name, problems in benchmarks.items():
        for mode in modes:
            rooms = backend.room(_prompts(problems, mode, template))
            for problem, room in zip(problems, rooms, strict=True):
                if room < 1:
                    raise DsmError(
                        f"{name}: problem {problem.id!r}: its {mode} prompt is {1 - room} tokens "
                        "longer than the model's max_position_embeddings allow; leave it out"
                    )


def _answers(
    recipe: EvaluateRecipe,
    problems: Sequence[Problem],
    mode: Mode,
    template: Template,
    backend: Backend,
    sandbox: Sandbox | None,
    count: Callable[[int], None],
) -> list[Answer]:
    prompts = _prompts(problems, mode, template)
    if mode == "tool":
        assert sandbox is not None
        return answer_with_tools(
            prompts,
            backend=backend,
            run_programs=sandbox.run,
            template=template,
            max_new_tokens=recipe.max_new_tokens,
            rounds=recipe.tool.rounds,
            handover=recipe.tool.handover,
            progress=count,
        )
    params = GenerationParams(max_new_tokens=recipe.max_new_tokens)
    return [
        Answer(text=g.text, finish_reason=g.finish_reason, num_tokens=g.num_tokens)
        for g in backend.generate(prompts, params, progress=count)
    ]


def _graded(benchmark: str, mode: Mode, problem: Problem, answer: Answer) -> dict[str, Any]:
    output = final_output(answer.runs[-1].result) if answer.runs else ""
    predicted = extract_answer(answer.text, program_output=output)
    correct = grade(predicted, problem.answer)
    row: dict[str, Any] = {
        "benchmark": benchmark,
        "mode": mode,
        "id": problem.id,
        "language": problem.language,
        "topic": problem.topic,
        "gold": problem.answer,
        "predicted": predicted,
        "correct": correct,
        "failure": None if correct else _failure(answer, predicted),
        "finish_reason": answer.finish_reason,
        "num_tokens": answer.num_tokens,
        "answer": answer.text,
    }
    if mode == "tool":
        row["program_output_correct"] = grade(output, problem.answer)
        row["programs"] = [
            {
                "program": run.program,
                "stdout": run.result.stdout,
                "error": run.result.error,
                "timed_out": run.result.timed_out,
            }
            for run in answer.runs
        ]
    return row


def _failure(answer: Answer, predicted: str) -> str:
    """Why an answer failed: the first cause that holds."""
    last = answer.runs[-1].result if answer.runs else None
    if answer.finish_reason == "length":
        return "cut_off"
    if last is not None and last.timed_out:
        return "time_out"
    if last is not None and last.error:
        return "runtime_error"
    return "wrong" if predicted else "no_answer"


def _summary(rows: Sequence[dict[str, Any]], mode: Mode) -> dict[str, Any]:
    summary: dict[str, Any] = {"n": len(rows), "accuracy": _share(row["correct"] for row in rows)}
    if mode == "tool":
        summary["accuracy_program_output"] = _share(row["program_output_correct"] for row in rows)
    summary["failures"] = dict(Counter(row["failure"] for row in rows if not row["correct"]))
    for key in ("language", "topic"):
        groups: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            groups[row[key]].append(row["correct"])
        summary[f"by_{key}"] = {
            value: {"n": len(verdicts), "accuracy": _share(verdicts)}
            for value, verdicts in sorted(groups.items())
            if value
        }
    summary["num_tokens"] = sum(row["num_tokens"] for row in rows)
    return summary


def _share(verdicts: Iterable[bool]) -> float:
    verdicts = list(verdicts)
    return sum(verdicts) / len(verdicts)


def _write(
    recipe: EvaluateRecipe, predictions: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    predictions_path, recipe_path, summary_path = (recipe.output / name for name in _FILES)
    with atomic_file(predictions_path) as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in predictions)
    with atomic_file(recipe_path) as file:
        file.write(dump_yaml(recipe).encode())
    write_json(summary_path, summary)


def _open_sandbox(tool: ToolRecipe, unsafe_exec: bool) -> Sandbox:
    return Sandbox(
        timeout_s=tool.timeout_s,
        memory_mib=tool.memory_mib,
        workers=tool.workers,
        unsafe=unsafe_exec,
    )


def _place(unsafe_exec: bool) -> str:
    return "no sandbox (--unsafe-exec)" if unsafe_exec else "bubblewrap"


def _counter(progress: Progress | None, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        if progress is not None:
            progress(what, done, total)

    return count
