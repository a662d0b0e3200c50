"""The evaluation that `dsm train` hands to the training loop."""

from dsm_engine.errors import DsmError
from dsm_engine.recipes import load_recipe
from dsm_engine.training.config import EvaluationConfig
from dsm_engine.training.in_job_evaluation import EvaluateFolder


def in_job_evaluation(config: EvaluationConfig | None) -> EvaluateFolder | None:
    """What evaluates a folder by the section's recipe; None without a section.

    Raises DsmError for a recipe or a benchmark that cannot be read: before training begins, not at
    the first evaluation.
    """
    if config is None:
        return None
    from pathlib import Path

    from dsm_engine.evaluation.evaluate import EvaluateRecipe, evaluate
    from dsm_engine.evaluation.problems import read_problems

    # Both are replaced, and need not stand in the file.
    recipe = load_recipe(config.recipe, ["model=replaced", "output=replaced"], EvaluateRecipe)
    if config.max_problems is not None:
        limited = [
            benchmark.model_copy(
                update={"limit": min(benchmark.limit or config.max_problems, config.max_problems)}
            )
            for benchmark in recipe.benchmarks
        ]
        recipe = recipe.model_copy(update={"benchmarks": limited})
    try:
        for benchmark in recipe.benchmarks:
            read_problems(benchmark, limit=recipe.limit)
    except DsmError as error:
        raise DsmError(f"evaluation.recipe {config.recipe}: {error}") from error

    def evaluate_folder(model: Path, report: Path) -> dict[str, float | None]:
        summary = evaluate(recipe.model_copy(update={"model": model, "output": report}))
        return {
            f"{name}/{mode}": None if result is None else result["accuracy"]
            for name, modes in summary["benchmarks"].items()
            for mode, result in modes.items()
        }

    return evaluate_folder
