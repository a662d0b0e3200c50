"""Drives the `dsm` commands from a generated data set to an evaluated model, and sums up.

Every step but the first is the command a user would type, printed before it runs.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sample_set import SampleSetReport, tokenizer_symbols, write_sample_set
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.templates import load_template
from dsm_engine.data.tokenizers import train_sentencepiece
from dsm_engine.errors import DsmError
from dsm_engine.files import make_folder, write_json
from dsm_engine.quickstart.summary import summarize
from dsm_engine.recipes import load_recipe
from dsm_engine.sandbox import Sandbox, sandbox_status

RECIPES = Path(__file__).parent / "recipes"
_MARKER = "quickstart.json"
_VOCAB_SIZE = 512
_MAX_RANKS = 2

Say = Callable[[str], None]


def quickstart(output: Path, *, seed: int, say: Say) -> dict[str, Any]:
    """Runs the whole path into `output` and returns the summary, also written as summary.json.

    An earlier quickstart in that folder is replaced; anything else there is left alone and
    refused. Raises DsmError where a step fails.
    """
    started = time.monotonic()
    _prepare(output, say)
    run = _Quickstart(output, seed, say)
    sample_set = run.make_sample_set()
    run.preprocess_and_pack()
    run.train()
    run.convert()
    run.evaluate()
    summary = summarize(output, sample_set, run.seconds, time.monotonic() - started)
    write_json(output / "summary.json", summary)
    return summary


class _Quickstart:
    """The steps, each timed."""

    def __init__(self, output: Path, seed: int, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._output = output
        self._seed = seed
        self._say = say
        self._tokenizer = output / "tokenizer" / "tokenizer.model"

    def make_sample_set(self) -> SampleSetReport:
        with self._phase("sample set"):
            status = sandbox_status()
            if status.available:
                with Sandbox() as sandbox:
                    report = write_sample_set(
                        self._output / "data", seed=self._seed, verify_programs=sandbox.run
                    )
            else:
                self._say(f"programs are computed, not run: {status.reason}")
                report = write_sample_set(self._output / "data", seed=self._seed)
            self._say(
                f"{report.num_problems:,} problems in three formats = {report.num_examples:,} "
                f"examples, English and Chinese; verified: {report.num_equations:,} equations "
                f"recomputed, {report.num_programs:,} programs by the "
                f"{report.programs_verified_by}; {report.num_held_out} problems held out"
            )
            self._train_tokenizer(report.train_path)
        return report

    def preprocess_and_pack(self) -> None:
        data = self._output / "data"
        with self._phase("preprocess"):
            for name in ("train", "validation"):
                self._dsm(
                    "preprocess",
                    RECIPES / "preprocess.yaml",
                    f"output={data / name}",
                    f"tokenizer={self._tokenizer}",
                    f"sources.0.path={data / name}.jsonl",
                )
        with self._phase("pack"):
            self._dsm(
                "pack", data / "train", "--capacity", "1024", "--seed", str(self._seed),
                "--output", data / "train.packs",
            )  # fmt: skip

    def train(self) -> None:
        data = self._output / "data"
        num_ranks = min(_MAX_RANKS, _num_devices())
        with self._phase("train"):
            self._run(
                "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks),
                "-m", "dsm_engine.cli", "train", RECIPES / "train.yaml",
                f"run={self._output / 'train'}", f"seed={self._seed}",
                f"data.train={data / 'train'}", f"data.validation={data / 'validation'}",
                f"data.packs={data / 'train.packs'}", f"data.tokenizer={self._tokenizer}",
            )  # fmt: skip

    def convert(self) -> None:
        run = self._output / "train"
        with self._phase("convert"):
            first = run / "checkpoints" / "step_00000000"
            self._dsm("convert", first, self._output / "model_before")
            self._dsm("convert", run, self._output / "model_after")

    def evaluate(self) -> None:
        with self._phase("evaluate"):
            for when in ("before", "after"):
                self._dsm(
                    "evaluate",
                    RECIPES / "evaluate.yaml",
                    f"model={self._output / f'model_{when}'}",
                    f"benchmarks.0.path={self._output / 'data' / 'held_out.jsonl'}",
                    f"output={self._output / f'evaluation_{when}'}",
                )

    def _train_tokenizer(self, examples: Path) -> None:
        recipe = load_recipe(RECIPES / "preprocess.yaml", [], PreprocessRecipe)
        template = load_template(recipe.template)
        reader = make_reader("examples", source="", options={}, where=str(examples))
        texts = [
            "".join(segment.text for segment in template.render(reader.example(row)))
            for row in reader.rows(examples)
        ]
        # A whole instruction as one piece: it says which format is asked for, nothing more.
        symbols = tokenizer_symbols() + [f"\n{suffix}" for suffix in template.suffixes]
        train_sentencepiece(texts, path=self._tokenizer, vocab_size=_VOCAB_SIZE, symbols=symbols)
        self._say(f"SentencePiece model of {_VOCAB_SIZE} pieces -> {self._tokenizer}")

    def _dsm(self, *words: str | Path) -> None:
        self._run("dsm_engine.cli", *words)

    def _run(self, module: str, *words: str | Path) -> None:
        arguments = [str(word) for word in words]
        shown = {"dsm_engine.cli": "dsm", "torch.distributed.run": "torchrun"}[module]
        self._say(f"$ {shlex.join([shown, *arguments])}")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if module == "torch.distributed.run":
            environment.setdefault("OMP_NUM_THREADS", "1")  # one core a rank
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], env=environment, check=False
        )
        if done.returncode:
            raise DsmError(
                f"the command above ended with exit code {done.returncode}; what it printed says "
                f"why, and what it had written lies in {self._output}"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._say(f"\n== {name}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)


def _num_devices() -> int:
    """GPUs where there are any, else cores."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def _prepare(output: Path, say: Say) -> None:
    make_folder(output)
    if any(output.iterdir()):
        if not (output / _MARKER).exists():
            raise DsmError(
                f"{output}: holds files that are not a quickstart's; choose another --output"
            )
        say(f"replacing the earlier quickstart in {output}")
        shutil.rmtree(output)
    write_json(output / _MARKER, {"made_by": "dsm quickstart"})
