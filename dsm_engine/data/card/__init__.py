"""The dataset card: what a tokenized dataset holds, as Markdown and as one HTML page.

The same dataset gives the same bytes: nothing depends on the time or the machine but what the
manifest says.
"""

from pathlib import Path

from dsm_engine.data.card.collect import collect_card
from dsm_engine.data.card.html import render_html
from dsm_engine.data.card.markdown import render_markdown
from dsm_engine.data.tokenized_dataset import TokenizedDataset, path_of
from dsm_engine.data.tokenizers import Tokenizer, dataset_tokenizer
from dsm_engine.files import atomic_file

MARKDOWN_SUFFIX, HTML_SUFFIX = ".card.md", ".card.html"


def write_card(
    prefix: Path,
    *,
    capacity: int = 4096,
    num_samples: int = 3,
    tokenizer: Tokenizer | None = None,
    tokenizer_path: Path | None = None,
) -> tuple[Path, Path]:
    """Writes PREFIX.card.md and PREFIX.card.html, and returns their paths.

    Args:
        prefix: A tokenized dataset.
        capacity: Tokens of the packs whose fill is shown.
        num_samples: Documents that are shown.
        tokenizer: The dataset's, where it is loaded already; else it is loaded from
            `tokenizer_path` or from where the manifest says, if there are samples.

    Raises DsmError where the dataset is damaged or empty, or the tokenizer is another one.
    """
    dataset = TokenizedDataset(prefix)
    if tokenizer is None and num_samples:
        tokenizer = dataset_tokenizer(prefix, dataset.manifest, tokenizer_path)
    card = collect_card(dataset, tokenizer, capacity=capacity, num_samples=num_samples)
    paths = path_of(prefix, MARKDOWN_SUFFIX), path_of(prefix, HTML_SUFFIX)
    for path, text in zip(paths, (render_markdown(card), render_html(card)), strict=True):
        with atomic_file(path) as file:
            file.write(text.encode())
    return paths
