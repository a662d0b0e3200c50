"""From sources to a tokenized dataset: read, render, tokenize, write, and account for every row.

The sources are cut into blocks; processes turn each block into a part, here or on several machines
(`preprocess_shard`), and the parts are joined in the order of the sources (`merge_shards`), so that
the dataset does not depend on who made them. Parts that stand when a run begins are not made again.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from dsm_engine.data.ledger import Ledger
from dsm_engine.data.preparation.assembly import assemble
from dsm_engine.data.preparation.blocks import SourceFile, count_lines, cut_blocks
from dsm_engine.data.preparation.making import Making, Progress
from dsm_engine.data.preparation.mixture import SourceShare, share_out
from dsm_engine.data.preparation.part import Part
from dsm_engine.data.preparation.parts_folder import PartsFolder, Shard
from dsm_engine.data.preparation.plan import OpenRecipe, Plan, make_plan, open_recipe
from dsm_engine.data.preparation.quality import open_duplicates, open_verification
from dsm_engine.data.preparation.resolve import Resolver
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.data.tokenized_dataset import TokenizedDatasetWriter
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file
from dsm_engine.targets import prepare_targets


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What a preprocessing run made."""

    output: Path
    num_documents: int
    num_tokens: int
    num_supervised_tokens: int
    max_document_tokens: int
    ledger: Ledger
    shares: list[tuple[str, SourceShare]]
    """By source of the recipe: its name and what it gave."""
    contamination: list[dict[str, Any]]
    """By benchmark and source, as in the manifest."""
    encoder: str = ""
    """`native`, `fastokens` or `library`, the last with its reason where it has one; empty where
    shards were merged."""
    quarantine: Path | None
    """Where the rows that were not kept lie, under that policy."""
    num_quarantined: int
    num_blocks: int
    num_resumed: int = 0
    """Blocks that an earlier run had done."""
    num_discarded: int = 0
    """Parts of earlier runs that were of something else, and are removed."""
    phase_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase in this run, by the clock, summed over the processes."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a shard's run made."""

    folder: Path
    num_blocks: int
    """Of the shard."""
    num_resumed: int
    num_rows: int
    phase_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ExampleCounts:
    """What a recipe would give, as far as that can be told without tokens and programs."""

    ledger: Ledger
    """`kept` are examples that are available to the mixture."""
    shares: list[tuple[str, SourceShare]]
    """By source of the recipe: its name and what it would give."""
    columns: dict[str, list[tuple[str, int]]]
    """language and format: each value and how many available examples have it."""
    left_out: list[str]
    """What was not looked at."""


def preprocess(
    recipe: PreprocessRecipe,
    *,
    workers: int | None = None,
    unsafe_exec: bool = False,
    progress: Progress | None = None,
) -> PreprocessReport:
    """Writes the dataset the recipe describes; nothing reaches its final name unless all is well.

    `workers` processes work on it, as many as there are processors if not given; `unsafe_exec` lets
    verification run programs without a sandbox. Raises DsmError with `file:line:byte` where the
    recipe's policies make a bad row an error.
    """
    opened = open_recipe(recipe)
    verification = open_verification(recipe.verification, unsafe_exec=unsafe_exec)
    folder = PartsFolder(recipe.output)
    with folder.locked(shared=False):
        prepare_targets(_quarantine_path(recipe.output))
        plan = make_plan(opened, conditions=verification.conditions)
        num_discarded = folder.begin(plan, shared=False)
        making = Making(opened, folder, Shard(), make_verifier=verification.make)
        with making.parts(workers, progress) as parts:
            report = _join(plan, recipe, opened.sources, folder, parts, making)
        folder.remove()
    return _with_run(report, making, num_discarded)


def preprocess_shard(
    recipe: PreprocessRecipe,
    shard: Shard,
    *,
    workers: int | None = None,
    unsafe_exec: bool = False,
    progress: Progress | None = None,
) -> ShardReport:
    """Makes the parts of one shard, into PREFIX.parts; `merge_shards` joins those of all."""
    opened = open_recipe(recipe)
    verification = open_verification(recipe.verification, unsafe_exec=unsafe_exec)
    folder = PartsFolder(recipe.output)
    with folder.locked(shared=True):
        folder.begin(make_plan(opened, conditions=verification.conditions), shared=True)
        making = Making(opened, folder, shard, make_verifier=verification.make)
        num_rows = 0
        with making.parts(workers, progress) as parts:
            for part in parts:
                _refuse_faults(opened, part)
                num_rows += part.counts.num_rows
        for source in opened.sources:
            source.check_unchanged()
        folder.finish_shard(shard, making.num_blocks)
    return ShardReport(
        folder=folder.path,
        num_blocks=making.num_own_blocks,
        num_resumed=making.num_resumed,
        num_rows=num_rows,
        phase_s=making.phase_s,
    )


def merge_shards(output: Path) -> PreprocessReport:
    """Joins the parts of all shards at `output` to the dataset one run would have written there.

    Needs nothing but PREFIX.parts. Raises DsmError where a shard is missing.
    """
    folder = PartsFolder(output)
    with folder.locked(shared=False):
        plan = folder.open()
        num_blocks = folder.num_blocks()
        prepare_targets(_quarantine_path(output))
        recipe = plan.recipe.model_copy(update={"output": output})
        parts = _standing_parts(folder, num_blocks)
        report = _join(plan, recipe, plan.sources(), folder, parts, None)
        folder.remove()
    return report


def count_examples(
    recipe: PreprocessRecipe, *, workers: int | None = None, progress: Progress | None = None
) -> ExampleCounts:
    """Reads, renders and compares everything, and writes nothing but into a temporary folder."""
    opened = open_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="dsm-dry-run-") as temporary:
        folder = PartsFolder(Path(temporary) / "counts")
        folder.begin(make_plan(opened, conditions=""), shared=False)
        making = Making(opened, folder, Shard(), make_verifier=None, count_only=True)
        resolver = _resolver(recipe, opened.sources, [b.name for b in opened.benchmarks])
        columns = {name: Counter[str]() for name in ("language", "format")}
        with making.parts(workers, progress) as parts:
            for part in parts:
                resolver.add(part)
                _count_columns(part, columns, resolver)
    resolver.finish()
    shares = _shares(recipe, opened.sources, resolver)
    for name, share in shares:
        resolver.ledger.source(name).kept += share.available
    return ExampleCounts(
        ledger=resolver.ledger,
        shares=shares,
        columns={name: sorted(counter.items()) for name, counter in columns.items()},
        left_out=_left_out(recipe),
    )


def _with_run(report: PreprocessReport, making: Making, num_discarded: int) -> PreprocessReport:
    return replace(
        report,
        encoder=making.encoder,
        num_resumed=making.num_resumed,
        num_discarded=num_discarded,
        phase_s={**making.phase_s, **report.phase_s},
    )


def _standing_parts(folder: PartsFolder, num_blocks: int) -> Iterator[Part]:
    for number in range(num_blocks):
        if not folder.has(number):
            raise DsmError(
                f"{folder.path}: part {number} is missing or damaged; run its shard again"
            )
        yield folder.read(number, tokens=False)


def _join(
    plan: Plan,
    recipe: PreprocessRecipe,
    sources: Sequence[SourceFile],
    folder: PartsFolder,
    parts: Iterable[Part],
    making: Making | None,
) -> PreprocessReport:
    """Decides over the parts as they come, then writes the dataset of what is kept."""
    vocab_size = plan.values["tokenizer"]["vocab_size"]
    with ExitStack() as stack:
        writer = stack.enter_context(TokenizedDatasetWriter(recipe.output, vocab_size=vocab_size))
        with ExitStack() as quarantine:
            rejects = _open_quarantine(recipe, quarantine)
            resolver = _resolver(recipe, sources, plan.benchmarks, rejects)
            for part in parts:
                resolver.add(part)
            resolver.finish()
            if making is not None:
                for source in sources:
                    source.check_unchanged()
            shares = _shares(recipe, sources, resolver)
            started = time.perf_counter()
            assemble(
                writer,
                folder.read,
                resolver.survivors,
                shares,
                seed=recipe.seed,
                ledger=resolver.ledger,
            )
            manifest = {**plan.manifest, "ledger": resolver.ledger.as_dict()}
            if recipe.decontamination:
                manifest["contamination"] = resolver.contamination.as_rows()
            writer.finish(**manifest)
    if rejects is None:
        # One of an earlier run under this prefix would tell of rows that are not this dataset's.
        _quarantine_path(recipe.output).unlink(missing_ok=True)
    total = resolver.ledger.total
    return PreprocessReport(
        output=recipe.output,
        num_documents=total.documents,
        num_tokens=total.tokens,
        num_supervised_tokens=total.supervised_tokens,
        max_document_tokens=writer.max_document_tokens,
        ledger=resolver.ledger,
        shares=shares,
        contamination=resolver.contamination.as_rows(),
        quarantine=None if rejects is None else _quarantine_path(recipe.output),
        num_quarantined=resolver.num_quarantined,
        num_blocks=len(resolver.survivors),
        phase_s={"write": time.perf_counter() - started},
    )


def _resolver(
    recipe: PreprocessRecipe,
    sources: Sequence[SourceFile],
    benchmarks: list[str],
    rejects: IO[bytes] | None = None,
) -> Resolver:
    duplicates = open_duplicates(recipe)
    return Resolver(recipe, sources, benchmarks=benchmarks, duplicates=duplicates, rejects=rejects)


def _shares(
    recipe: PreprocessRecipe, sources: Sequence[SourceFile], resolver: Resolver
) -> list[tuple[str, SourceShare]]:
    available = [0] * len(recipe.sources)
    for survivors in resolver.survivors:
        available[survivors.source_idx] += len(survivors.documents)
    shares = share_out(recipe, available)
    if not any(share.documents for share in shares):
        counts = ", ".join(
            f"{source.reader.source} {count:,}"
            for source, count in zip(sources, available, strict=True)
        )
        raise DsmError(
            f"{recipe.output}: the mixture takes no example: see caps, epochs and weights"
            f" (available: {counts})"
        )
    return [(source.reader.source, share) for source, share in zip(sources, shares, strict=True)]


def _count_columns(part: Part, columns: dict[str, Counter[str]], resolver: Resolver) -> None:
    documents = resolver.survivors[-1].documents
    for name, counter in columns.items():
        column_idx = COLUMNS.index(name)
        for code in part.codes[documents, column_idx].tolist():
            counter[part.counts.names[column_idx][code]] += 1


def _left_out(recipe: PreprocessRecipe) -> list[str]:
    left_out = [f"examples longer than {recipe.max_tokens} tokens, and unknown tokens"]
    if recipe.verification:
        left_out.append("programs that do not give what their example says")
    return left_out


def _refuse_faults(opened: OpenRecipe, part: Part) -> None:
    """Ends a shard's run at the first fault that will end the merge."""

    def decide(lines_before: int) -> None:
        names = [benchmark.name for benchmark in opened.benchmarks]
        resolver = Resolver(opened.recipe, opened.sources, benchmarks=names)
        resolver.begin_at(part.counts.source_idx, lines_before)
        resolver.add(part)

    try:
        decide(0)
    except DsmError:
        block = next(b for b in cut_blocks(opened.sources) if b.number == part.counts.block)
        path = opened.sources[block.source_idx].path
        decide(count_lines(path, 0, block.begin) if block.rows is None else 0)


def _quarantine_path(output: Path) -> Path:
    return output.with_name(output.name + ".quarantine.jsonl")


def _open_quarantine(recipe: PreprocessRecipe, stack: ExitStack) -> IO[bytes] | None:
    if recipe.on_error == "quarantine" or recipe.verification or recipe.decontamination:
        return stack.enter_context(atomic_file(_quarantine_path(recipe.output)))
    return None
