"""From sources to a tokenized dataset: read, render, tokenize, write, and account for every row.

The sources are cut into blocks; processes turn each block into a part, here or on several machines
(`preprocess_shard`), and the parts are joined in the order of the sources (`merge_shards`), so that
the dataset does not depend on who made them. Parts that stand when a run begins are not made again.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dsm_engine.data.ledger import Ledger
from dsm_engine.data.preparation.assembly import assemble
from dsm_engine.data.preparation.blocks import Block, count_lines, cut_blocks
from dsm_engine.data.preparation.mixture import SourceShare, share_out
from dsm_engine.data.preparation.part import Part
from dsm_engine.data.preparation.parts_folder import PartsFolder, Shard
from dsm_engine.data.preparation.plan import (
    OpenRecipe,
    check_unchanged,
    make_plan,
    open_recipe,
    sources_of_plan,
)
from dsm_engine.data.preparation.prepare import BlockPreparer
from dsm_engine.data.preparation.quality import (
    look_for_benchmarks,
    open_duplicates,
    open_verification,
    take_fingerprints,
)
from dsm_engine.data.preparation.resolve import Resolver
from dsm_engine.data.preparation.workers import Workers, default_workers
from dsm_engine.data.recipe import PreprocessRecipe
from dsm_engine.data.sidecars import COLUMNS
from dsm_engine.data.tokenized_dataset import TokenizedDatasetWriter
from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file
from dsm_engine.targets import prepare_targets

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of all sources, as they lie on the disk."""


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
    encoder: str
    """`native`, `fastokens` or `library`, the last with its reason where it has one."""
    quarantine: Path | None
    """Where the rows that were not kept lie, under that policy."""
    num_quarantined: int
    num_resumed: int
    """Blocks that an earlier run had done."""
    num_blocks: int
    phase_s: dict[str, float] = field(default_factory=dict)
    """Processor seconds of each phase, summed over the processes that worked on it in this run."""


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
    folder = PartsFolder(recipe.output)
    with folder.locked(Shard()):
        _prepare_outputs(recipe)
        plan = make_plan(opened)
        folder.begin(plan, Shard())
        making = _Making(opened, folder, Shard(), unsafe_exec=unsafe_exec)
        with making.parts(workers or default_workers(), progress) as parts:
            report = _join(plan, folder, parts, lambda: check_unchanged(opened), making)
        folder.remove()
    return report


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a shard's run made."""

    folder: Path
    num_blocks: int
    """Of the shard."""
    num_resumed: int
    num_rows: int
    phase_s: dict[str, float]


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
    folder = PartsFolder(recipe.output)
    with folder.locked(shard):
        folder.begin(make_plan(opened), shard)
        making = _Making(opened, folder, shard, unsafe_exec=unsafe_exec)
        num_rows = 0
        with making.parts(workers or default_workers(), progress) as parts:
            for part in parts:
                _refuse_faults(opened, part)
                num_rows += part.counts.num_rows
        check_unchanged(opened)
        folder.finish_shard(shard, making.num_blocks)
    return ShardReport(
        folder=folder.path,
        num_blocks=making.num_own_blocks,
        num_resumed=making.num_resumed,
        num_rows=num_rows,
        phase_s=making.phase_s,
    )


def merge_shards(output: Path) -> PreprocessReport:
    """Joins the parts of all shards to the dataset one run would have written.

    Needs nothing but PREFIX.parts. Raises DsmError where a shard is missing.
    """
    folder = PartsFolder(output)
    with folder.locked(Shard()):
        plan = folder.plan()
        num_blocks = folder.num_blocks()
        recipe, _ = sources_of_plan(plan)
        _prepare_outputs(recipe)
        report = _join(plan, folder, _standing_parts(folder, num_blocks), lambda: None, None)
        folder.remove()
    return report


@dataclass(frozen=True, kw_only=True)
class ExampleCounts:
    """What a recipe would give, as far as that can be told without tokens and programs."""

    ledger: Ledger
    shares: list[tuple[str, SourceShare]]
    """By source of the recipe: its name and what it would give."""
    columns: dict[str, list[tuple[str, int]]]
    """language and format: each value and how many available examples have it."""
    left_out: list[str]
    """What was not looked at."""


def count_examples(
    recipe: PreprocessRecipe, *, workers: int | None = None, progress: Progress | None = None
) -> ExampleCounts:
    """Reads, renders and compares everything, and writes nothing but into a temporary folder."""
    opened = open_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="dsm-dry-run-") as temporary:
        folder = PartsFolder(Path(temporary) / "counts")
        folder.begin(make_plan(opened), Shard())
        making = _Making(opened, folder, Shard(), unsafe_exec=False, dry_run=True)
        resolver = Resolver(
            recipe,
            opened.sources,
            benchmarks=[benchmark.name for benchmark in opened.benchmarks],
            duplicates=open_duplicates(recipe),
        )
        columns = {name: Counter[str]() for name in ("language", "format")}
        with making.parts(workers or default_workers(), progress) as parts:
            for part in parts:
                resolver.add(part)
                documents = resolver.survivors[-1].documents
                for name, counter in columns.items():
                    column_idx = COLUMNS.index(name)
                    for code in part.codes[documents, column_idx].tolist():
                        counter[part.counts.names[column_idx][code]] += 1
    resolver.finish()
    shares = _shares(recipe, resolver)
    for source, share in zip(opened.sources, shares, strict=True):
        resolver.ledger.source(source.reader.source).kept += share.available
    left_out = [f"examples longer than {recipe.max_tokens} tokens"]
    if recipe.verification:
        left_out.append("programs that do not give what their example says")
    return ExampleCounts(
        ledger=resolver.ledger,
        shares=[(s.reader.source, share) for s, share in zip(opened.sources, shares, strict=True)],
        columns={name: sorted(counter.items()) for name, counter in columns.items()},
        left_out=left_out,
    )


class _Making:
    """The parts of a shard in the making."""

    def __init__(
        self,
        opened: OpenRecipe,
        folder: PartsFolder,
        shard: Shard,
        *,
        unsafe_exec: bool,
        dry_run: bool = False,
    ) -> None:
        self.num_blocks = 0
        self.num_own_blocks = 0
        self.num_resumed = 0
        self.phase_s: dict[str, float] = {}
        self._opened = opened
        self._folder = folder
        self._shard = shard
        self._preparer = BlockPreparer(
            opened.recipe,
            opened.sources,
            opened.template,
            None if dry_run else opened.tokenizer,
            take_fingerprints=take_fingerprints(opened.recipe),
            look_for_benchmarks=look_for_benchmarks(opened.contamination),
            make_verifier=None
            if dry_run
            else open_verification(opened.recipe.verification, unsafe_exec=unsafe_exec),
        )

    @property
    def encoder(self) -> str:
        tokenizer = self._opened.tokenizer
        reason = tokenizer.encoder_reason
        return tokenizer.encoder if reason is None else f"{tokenizer.encoder} ({reason})"

    @contextmanager
    def parts(self, num_workers: int, progress: Progress | None) -> Iterator[Iterator[Part]]:
        """The shard's parts in order, without their tokens; each stands in the folder."""
        with (
            closing(self._preparer),
            Workers[Block, None](self._make, num_workers) as workers,
        ):
            yield self._in_order(workers, progress or (lambda done, total: None))

    def _make(self, block: Block) -> None:
        self._folder.write(self._preparer.prepare(block))

    def _in_order(self, workers: Workers, progress: Progress) -> Iterator[Part]:
        sizes = [source.num_bytes for source in self._opened.sources]
        positions: list[tuple[int, int, bool]] = []
        for idx, _ in enumerate(workers.map(self._tasks(positions))):
            number, position, resumed = positions[idx]
            part = self._folder.read(number, tokens=False)
            if not resumed:
                for name, seconds in part.counts.phase_s.items():
                    self.phase_s[name] = self.phase_s.get(name, 0.0) + seconds
            progress(sum(sizes[: part.counts.source_idx]) + position, sum(sizes))
            yield part
        progress(sum(sizes), sum(sizes))

    def _tasks(self, positions: list[tuple[int, int, bool]]) -> Iterator[Block | None]:
        """The shard's blocks, None for each whose part stands; notes where each one ends."""
        for block in cut_blocks(self._opened.sources):
            self.num_blocks += 1
            if not self._shard.has(block.number):
                continue
            self.num_own_blocks += 1
            resumed = self._folder.has(block.number)
            self.num_resumed += resumed
            positions.append((block.number, block.position, resumed))
            yield None if resumed else block


def _standing_parts(folder: PartsFolder, num_blocks: int) -> Iterator[Part]:
    for number in range(num_blocks):
        if not folder.has(number):
            raise DsmError(
                f"{folder.path}: part {number} is missing or damaged; run its shard again"
            )
        yield folder.read(number, tokens=False)


def _join(
    plan: dict[str, Any],
    folder: PartsFolder,
    parts: Iterable[Part],
    check: Callable[[], None],
    making: _Making | None,
) -> PreprocessReport:
    """Decides over the parts as they come, then writes the dataset of what is kept."""
    recipe, sources = sources_of_plan(plan)
    names = [source.reader.source for source in sources]
    vocab_size = plan["tokenizer"]["vocab_size"]
    with TokenizedDatasetWriter(recipe.output, vocab_size=vocab_size) as writer:
        with _quarantine_file(recipe) as rejects:
            resolver = Resolver(
                recipe,
                sources,
                benchmarks=[benchmark["name"] for benchmark in plan["benchmarks"]],
                duplicates=open_duplicates(recipe),
                rejects=rejects,
            )
            for part in parts:
                resolver.add(part)
            resolver.finish()
            check()
        shares = _shares(recipe, resolver)
        started = time.perf_counter()
        assemble(
            writer,
            folder.read,
            resolver.survivors,
            shares,
            names,
            seed=recipe.seed,
            ledger=resolver.ledger,
        )
        manifest = {key: value for key, value in plan.items() if key != "parts"}
        manifest["ledger"] = resolver.ledger.as_dict()
        if recipe.decontamination:
            manifest["contamination"] = resolver.contamination.as_rows()
        writer.finish(**manifest)
    if rejects is None:
        # One of an earlier run under this prefix would tell of rows that are not this dataset's.
        _quarantine_path(recipe).unlink(missing_ok=True)
    phase_s = dict(making.phase_s) if making else {}
    phase_s["write"] = time.perf_counter() - started
    total = resolver.ledger.total
    return PreprocessReport(
        output=recipe.output,
        num_documents=total.documents,
        num_tokens=total.tokens,
        num_supervised_tokens=total.supervised_tokens,
        max_document_tokens=writer.max_document_tokens,
        ledger=resolver.ledger,
        shares=list(zip(names, shares, strict=True)),
        contamination=resolver.contamination.as_rows(),
        encoder=making.encoder if making else plan["tokenizer"]["encoder"],
        quarantine=None if rejects is None else _quarantine_path(recipe),
        num_quarantined=resolver.num_quarantined,
        num_resumed=making.num_resumed if making else 0,
        num_blocks=len(resolver.survivors),
        phase_s=phase_s,
    )


def _shares(recipe: PreprocessRecipe, resolver: Resolver) -> list[SourceShare]:
    available = [0] * len(recipe.sources)
    for survivors in resolver.survivors:
        available[survivors.source_idx] += len(survivors.documents)
    return share_out(recipe, available)


def _refuse_faults(opened: OpenRecipe, part: Part) -> None:
    """Ends a shard's run at the first fault that will end the merge."""
    resolver = Resolver(
        opened.recipe,
        opened.sources,
        benchmarks=[benchmark.name for benchmark in opened.benchmarks],
    )
    if part.counts.num_lines and part.counts.faults:
        block = next(b for b in cut_blocks(opened.sources) if b.number == part.counts.block)
        path = opened.sources[block.source_idx].path
        resolver.begin_at(block.source_idx, count_lines(path, 0, block.begin))
    resolver.add(part)


def _prepare_outputs(recipe: PreprocessRecipe) -> None:
    prepare_targets(_quarantine_path(recipe))


def _quarantine_path(recipe: PreprocessRecipe) -> Path:
    return recipe.output.with_name(recipe.output.name + ".quarantine.jsonl")


@contextmanager
def _quarantine_file(recipe: PreprocessRecipe) -> Iterator[IO[bytes] | None]:
    wanted = recipe.on_error == "quarantine" or recipe.verification or recipe.decontamination
    with atomic_file(_quarantine_path(recipe)) if wanted else nullcontext() as file:
        yield file
