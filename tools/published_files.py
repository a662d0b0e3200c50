"""What the measuring tools read: a folder for each set, file names as they are there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsm_engine.data.example import Example, ExampleFault
from dsm_engine.data.quality.decontamination import BenchmarkRecipe
from dsm_engine.data.sources.registry import make_reader


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """A file of training examples and how it is read."""

    name: str
    reader: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)

    def examples(self, folder: Path) -> Iterator[Example]:
        """Its examples; rows that have none are left out."""
        reader = make_reader(self.reader, options=self.options)
        for row in reader.rows(folder / self.path):
            try:
                yield reader.example(row)
            except ExampleFault:
                continue


TRAINING_FILES = (
    TrainingFile("GSM8K train", "gsm8k", "gsm8k/train.jsonl.gz"),
    TrainingFile("MATH train", "math", "math/train.jsonl.gz"),
    TrainingFile(
        "TAL-SCQ5K train, English", "tal_scq5k", "tal_scq5k/en_single_choice_train_3K.jsonl.gz"
    ),
    TrainingFile("ToRA examples", "tora", "tora_examples/examples.jsonl.gz"),
    TrainingFile(
        "MathCoder answers, without SVAMP",
        "mathcoder",
        "tir_mathcoder/tir.jsonl.gz",
        {"sources": ["mathcoder/mathematics", "mathcoder/simuleq"]},
    ),
    TrainingFile(
        "TAL-SCQ5K train, Chinese", "tal_scq5k", "tal_scq5k/ch_single_choice_train_3K.jsonl.gz"
    ),
    TrainingFile("Ape210K valid", "ape210k", "ape210k/valid.ape.json.gz"),
    TrainingFile("Ape210K test", "ape210k", "ape210k/test.ape.json.gz"),
    TrainingFile("Math23K test", "math23k", "math23k/math23k_test.json.gz"),
)

# Name, file, language, and the fields of the question and of the worked answer.
_BENCHMARKS = (
    ("GSM8K", "gsm8k/test.jsonl.gz", "en", ["question"], ["answer"]),
    ("MATH", "math/test.jsonl.gz", "en", ["problem"], ["solution"]),
    (
        "MGSM-zh",
        "deepseek_math_eval/evaluation__datasets__mgsm_zh__mgsm_zh.jsonl.gz",
        "zh",
        ["messages.0.content"],
        [],
    ),
    (
        "CMATH",
        "deepseek_math_eval/evaluation__datasets__cmath__test.jsonl.gz",
        "zh",
        ["question"],
        [],
    ),
)


def benchmark_recipes(
    folder: Path, *, answers: bool = False, languages: Sequence[str] = ("en", "zh")
) -> list[BenchmarkRecipe]:
    """The four test sets of DeepSeekMath-Instruct: questions, and with them the worked answers."""
    return [
        BenchmarkRecipe.model_validate(
            {
                "name": name,
                "path": folder / path,
                "language": language,
                "fields": fields + (answer_fields if answers else []),
            }
        )
        for name, path, language, fields, answer_fields in _BENCHMARKS
        if language in languages
    ]


def worked_answer(example: Example) -> str:
    """The text of all blocks of the answer."""
    return "\n".join(block.text for block in example.blocks)
