"""configs/data/deepseekmath_instruct.yaml reads every file it names, in the published schemas."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from dsm_engine.data.preprocess import count_examples, preprocess
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.tokenized_dataset import TokenizedDataset
from dsm_engine.recipes import load_recipe

_RECIPE = Path(__file__).parents[2] / "configs" / "data" / "deepseekmath_instruct.yaml"
_NUM_ROWS = 12


def gsm8k(n: int) -> dict[str, Any]:
    return {
        "question": f"What is {n} plus one?",
        "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}",
    }


def math(n: int) -> dict[str, Any]:
    solution = f"It is $\\boxed{{{2 * n}}}$."
    return {
        "problem": f"Double ${n}$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": solution,
    }


def mathcoder(n: int) -> dict[str, Any]:
    blocks = [
        {"role": "text", "content": "We add."},
        {"role": "code", "content": f"{n} + 2"},
        {"role": "execution", "content": str(n + 2)},
        {"role": "text", "content": f"It is $\\boxed{{{n + 2}}}$."},
    ]
    return {"question": f"What is {n} plus two?", "blocks": blocks, "answer": str(n + 2)}


def tora(n: int) -> dict[str, Any]:
    text = f"```python\nprint({n} * 3)\n```\n```output\n{3 * n}\n```\nIt is $\\boxed{{{3 * n}}}$."
    messages = [
        {"role": "user", "content": f"What is {n} times three?"},
        {"role": "assistant", "content": text},
    ]
    return {"dataset": "math", "level": "1", "id": n, "gt": str(3 * n), "messages": messages}


def math_instruct(n: int) -> dict[str, Any]:
    part = "data/CoT/gsm_rft.json" if n % 2 else "data/PoT/numglue.json"
    output = f"It is {n + 4}. The answer is {n + 4}." if n % 2 else f"print({n} + 4)"
    return {"source": part, "instruction": f"What is {n} plus four?", "output": output}


def lila(n: int) -> dict[str, Any]:
    return {
        "Input": f"What is {n} plus five?",
        "Output Program": [f"print({n} + 5)"],
        "Output Answer": [str(n + 5)],
        "split": "train",
        "dataset": "addsub.json",
    }


def tal_scq5k(n: int) -> dict[str, Any]:
    return {
        "queId": str(n),
        "difficulty": "1",
        "problem": f"{n}加6等于多少？",
        "answer_option_list": [[{"aoVal": "A", "content": str(n + 6)}]],
        "knowledge_point_routes": [],
        "answer_analysis": [f"{n}+6={n + 6}"],
        "answer_value": "A",
    }


def word_problem(n: int) -> dict[str, Any]:
    return {
        "id": str(n),
        "original_text": f"小明有{n}个苹果，又买了7个，现在有多少个？",
        "equation": f"x={n}+7",
        "ans": str(n + 7),
    }


_ROWS = {
    **{"gsm8k": gsm8k, "math": math, "mathcoder": mathcoder, "tora": tora, "lila": lila},
    **{"math_instruct": math_instruct, "tal_scq5k": tal_scq5k},
    **{"ape210k": word_problem, "math23k": word_problem},
}


@pytest.fixture
def recipe(tmp_path: Path, small_model: Path) -> PreprocessRecipe:
    """The recipe over small files of its names."""
    loaded = load_recipe(
        _RECIPE,
        [
            f"sources_folder={tmp_path}",
            f"output={tmp_path / 'out' / 'train'}",
            f"tokenizer={small_model}",
            "verification=null",
            "mixture.examples=100",
        ],
        PreprocessRecipe,
    )
    for idx, source in enumerate(loaded.sources):
        first = 1000 * idx + 10_000
        rows = [_ROWS[source.reader](n) for n in range(first, first + _NUM_ROWS)]
        _write(tmp_path / source.path, rows)
    assert loaded.decontamination is not None
    for benchmark in loaded.decontamination.benchmarks:
        (key,) = benchmark.fields
        text: Any = f"Of what is {benchmark.name} made, and who would want to know that anyway?"
        for part in reversed(key.split(".")):
            text = [text] if part.isdecimal() else {part: text}
        _write(tmp_path / benchmark.path, [text])
    return loaded


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs dsm-engine[data]")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_bytes(orjson.dumps(rows))
    else:
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))


def test_every_source_of_the_papers_mixture_is_read(recipe: PreprocessRecipe):
    counts = count_examples(recipe, workers=1)
    assert counts.ledger.total.read == counts.ledger.total.kept == _NUM_ROWS * len(recipe.sources)
    assert [value for value, _ in counts.columns["language"]] == ["en", "zh"]
    assert [value for value, _ in counts.columns["format"]] == ["cot", "pot", "tir"]
    assert sum(share.wanted for _, share in counts.shares) == 100


def test_the_papers_mixture_becomes_a_dataset(recipe: PreprocessRecipe):
    report = preprocess(recipe, workers=1)
    dataset = TokenizedDataset(report.output)
    assert dataset.num_documents == sum(share.documents for _, share in report.shares)
    assert report.ledger.total.dropped.keys() == {"over_share"}
    assert dataset.manifest["contamination"] == []
