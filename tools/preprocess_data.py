"""Megatron-LM's tools/preprocess_data.py: its flags and its bytes, many times its speed.

    python tools/preprocess_data.py --input data.jsonl --output-prefix data/train \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER --append-eod --workers 2

docs/data.md says where it differs.
"""

import argparse
import gc
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from dsm_engine.data.tokenizers.early_load import EarlyLoad
from dsm_engine.errors import DsmError
from dsm_engine.nearest import nearest

_SPLITTING = "texts are not split into sentences here"
_ONE_SPEED = "the files do not depend on --workers; give the number of cores"
_OWN_VOCABULARY = "a tokenizer is its --tokenizer-model and nothing beside it"
REFUSED = {
    "--split-sentences": _SPLITTING,
    "--keep-newlines": _SPLITTING,
    "--lang": _SPLITTING,
    "--find-optimal-num-workers": _ONE_SPEED,
    "--workers-to-check": _ONE_SPEED,
    "--max-documents": _ONE_SPEED,
    "--performance-dir": _ONE_SPEED,
    "--vocab-file": _OWN_VOCABULARY,
    "--merge-file": _OWN_VOCABULARY,
    "--special-tokens": _OWN_VOCABULARY,
    "--tokenizer-special-tokens": _OWN_VOCABULARY,
    "--metadata-path": _OWN_VOCABULARY,
    "--tokenizer-metadata": _OWN_VOCABULARY,
    "--trust-remote-code": "no code that comes with a tokenizer is run",
    "--tokenizer-sentencepiece-legacy": "it gives control ids to text",
    "--tokenizer-hf-no-use-fast": "tokenizers without a tokenizer.json are not read",
    "--tiktoken-pattern": "TikTokenizer is not supported",
    "--tiktoken-num-special-tokens": "TikTokenizer is not supported",
    "--tiktoken-special-tokens": "TikTokenizer is not supported",
}
"""Flags of Megatron's that would change the files in ways this tool does not know, and why."""

_NO_EFFECT = "taken, and without effect"


def main() -> None:
    gc.disable()  # millions of small objects come and go, and no cycles
    arguments = _parse(sys.argv[1:])
    early = _start_early(arguments.tokenizer_type, arguments.tokenizer_model)
    from dsm_engine.data.megatron_preprocess import MegatronRecipe, preprocess_for_megatron

    recipe = MegatronRecipe(
        input=arguments.input,
        output_prefix=arguments.output_prefix,
        tokenizer_type=arguments.tokenizer_type,
        tokenizer_model=arguments.tokenizer_model,
        json_keys=arguments.json_keys,
        append_eod=arguments.append_eod,
        workers=arguments.workers,
        special_tokens=arguments.special_tokens,
        parse_control_tokens=arguments.parse_control_tokens,
        on_error=arguments.on_error,
    )
    interval = _Interval(arguments.log_interval)
    try:
        report = preprocess_for_megatron(recipe, progress=interval.show, early=early)
    except DsmError as error:
        sys.exit(_fail(str(error)))
    print(
        f"{report.num_documents} documents, {report.num_tokens} tokens,"
        f" encoded by {report.encoder}: {', '.join(f'{prefix}.bin' for prefix in report.prefixes)}"
    )
    if report.skipped:
        causes = ", ".join(f"{num} {cause}" for cause, num in sorted(report.skipped.items()))
        print(f"left out: {causes}")
    if report.num_with_controls:
        became = "control ids" if arguments.parse_control_tokens else "text; Megatron parses them"
        print(f"{report.num_with_controls} texts hold control strings, which became {became}")
    if report.num_with_losses:
        print(
            f"{report.num_with_losses} texts hold characters that the tokenizer has no token for;"
            " it drops them, as in Megatron"
        )
    if report.note:
        print(report.note)


class _Interval:
    """Tells of progress when a multiple of so many documents is passed."""

    def __init__(self, num_documents: int) -> None:
        self._every = max(1, num_documents)
        self._shown = 0
        self._started = time.perf_counter()

    def show(self, num_documents: int, num_bytes: int) -> None:
        if num_documents // self._every == self._shown:
            return
        self._shown = num_documents // self._every
        seconds = time.perf_counter() - self._started
        print(
            f"Processed {num_documents} documents ({num_documents / seconds:.0f} docs/s,"
            f" {num_bytes / seconds / 2**20:.1f} MB/s).",
            file=sys.stderr,
        )


def _start_early(kind: str, model: Path) -> EarlyLoad | None:
    """Loading a tokenizer.json takes longest at start: it begins before NumPy is imported."""
    if kind != "HuggingFaceTokenizer":
        return None
    return EarlyLoad(model / "tokenizer.json" if model.is_dir() else model)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, help="JSON lines (.gz and .zst too), or a pattern of such files")
    add("--output-prefix", required=True, help="PREFIX of PREFIX_KEY_document.bin and .idx")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY")
    add("--tokenizer-type", required=True)
    add("--tokenizer-model", required=True, type=Path)
    add("--append-eod", action="store_true", help="end every document with the EOS id")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads that encode")
    add("--log-interval", type=int, default=1000, metavar="DOCUMENTS")
    add(
        "--on-error",
        choices=["error", "skip"],
        default="error",
        help="bad lines end the run, or are left out and counted",
    )
    add(
        "--parse-control-tokens",
        action="store_true",
        help="control strings in text become control ids, as in Megatron",
    )
    add(
        "--tokenizer-hf-no-include-special-tokens",
        dest="special_tokens",
        action="store_false",
        help="no BOS and the like",
    )
    add("--partitions", type=int, default=1, help=f"{_NO_EFFECT}: the order is the input's")
    for flag in (
        "--keep-sequential-samples",
        "--tokenizer-hf-use-fast",
        "--tokenizer-hf-include-special-tokens",
    ):
        add(flag, action="store_true", help=_NO_EFFECT)
    for flag in ("--vocab-size", "--make-vocab-size-divisible-by", "--vocab-extra-ids"):
        add(flag, type=int, help=_NO_EFFECT)
    known = sorted(parser._option_string_actions)
    for word in words:
        flag = word.partition("=")[0]
        if flag in REFUSED:
            parser.error(f"{flag} is not supported: {REFUSED[flag]}")
        if flag.startswith("--") and flag not in known:
            parser.error(f"{flag} is unknown {nearest(flag, known)}")
    return parser.parse_args(words)


class _Parser(argparse.ArgumentParser):
    """One line for an error, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(message))


def _fail(message: str) -> int:
    print(f"preprocess_data: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("preprocess_data: interrupted; nothing was published", file=sys.stderr)
        sys.exit(130)
