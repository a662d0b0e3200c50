"""A shard's parts in the making: those that stand already are not made again."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from dsm_engine.data.preparation.blocks import Block, cut_blocks
from dsm_engine.data.preparation.part import Part
from dsm_engine.data.preparation.parts_folder import PartsFolder, Shard
from dsm_engine.data.preparation.plan import OpenRecipe
from dsm_engine.data.preparation.prepare import BlockPreparer, Verifier
from dsm_engine.data.preparation.quality import look_for_benchmarks, take_fingerprints
from dsm_engine.data.preparation.workers import Workers, default_workers

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes of all sources, as they lie on the disk."""


class Making:
    """Makes the parts of a shard in `folder`, for a recipe that is open.

    Without tokens, for counting, where `count_only`.
    """

    def __init__(
        self,
        opened: OpenRecipe,
        folder: PartsFolder,
        shard: Shard,
        *,
        make_verifier: Callable[[], Verifier] | None,
        count_only: bool = False,
    ) -> None:
        self.num_blocks = 0
        """Of all shards."""
        self.num_own_blocks = 0
        self.num_resumed = 0
        self.phase_s: dict[str, float] = {}
        """Seconds of each phase, by the clock, summed over the processes."""
        self._opened = opened
        self._folder = folder
        self._shard = shard
        self._preparer = BlockPreparer(
            opened.recipe,
            opened.sources,
            opened.template,
            None if count_only else opened.tokenizer,
            take_fingerprints=take_fingerprints(opened.recipe),
            look_for_benchmarks=look_for_benchmarks(opened.contamination),
            make_verifier=make_verifier,
        )

    @property
    def encoder(self) -> str:
        """What encodes, with the reason where it is not the fastest."""
        tokenizer = self._opened.tokenizer
        reason = tokenizer.encoder_reason
        return tokenizer.encoder if reason is None else f"{tokenizer.encoder} ({reason})"

    @contextmanager
    def parts(self, num_workers: int | None, progress: Progress | None) -> Iterator[Iterator[Part]]:
        """The shard's parts in order, without their tokens; each stands in the folder."""
        if num_workers is None:
            num_workers = default_workers()
        with closing(self._preparer), Workers[Block, None](self._make, num_workers) as workers:
            yield self._in_order(workers, progress or (lambda done, total: None))

    def _make(self, block: Block) -> None:
        part = self._preparer.prepare(block)
        # What was read of a file that has changed is not what the folder's plan speaks of.
        self._opened.sources[block.source_idx].check_unchanged()
        self._folder.write(part)

    def _in_order(self, workers: Workers[Block, None], progress: Progress) -> Iterator[Part]:
        sizes = [source.num_bytes for source in self._opened.sources]
        taken: deque[tuple[int, int, bool]] = deque()
        for _ in workers.map(self._tasks(taken)):
            number, position, resumed = taken.popleft()
            part = self._folder.read(number, tokens=False)
            if not resumed:
                for name, seconds in part.counts.phase_s.items():
                    self.phase_s[name] = self.phase_s.get(name, 0.0) + seconds
            progress(sum(sizes[: part.counts.source_idx]) + position, sum(sizes))
            yield part
        progress(sum(sizes), sum(sizes))

    def _tasks(self, taken: deque[tuple[int, int, bool]]) -> Iterator[Block | None]:
        """The shard's blocks, None for each whose part stands; notes where each one ends."""
        for block in cut_blocks(self._opened.sources):
            self.num_blocks += 1
            if not self._shard.has(block.number):
                continue
            self.num_own_blocks += 1
            resumed = self._folder.has(block.number)
            self.num_resumed += resumed
            taken.append((block.number, block.position, resumed))
            yield None if resumed else block
