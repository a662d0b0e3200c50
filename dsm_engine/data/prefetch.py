"""Packs gathered in the background, ahead of the one who trains on them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

from dsm_engine.data.packed_batch import PackedBatch, PackReader

_POLL_S = 0.1  # how soon the worker sees that nobody reads any more


class PackPrefetcher:
    """Reads packs in a thread of its own into a ring of buffers, at most `depth` ahead.

    Iterating yields the packs in the order given; a batch is valid until the next one is asked for,
    when its buffers go back to the ring. An error of a pack is raised where that pack would have
    been yielded. Closing, or leaving the `with` block, ends the thread.

    `buffers` are those of the ring, at least depth + 2 (one is with the reader, one is being
    filled); pinned ones for a GPU. Default: allocated by the reader.
    """

    def __init__(
        self,
        reader: PackReader,
        pack_indices: Iterable[int],
        *,
        depth: int = 4,
        buffers: Iterable[PackedBatch] | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, found {depth}")
        ring = [reader.allocate() for _ in range(depth + 2)] if buffers is None else list(buffers)
        if len(ring) < depth + 2:
            raise ValueError(f"expected at least {depth + 2} buffers, found {len(ring)}")
        self._reader = reader
        self._pack_indices = pack_indices
        self._free: queue.SimpleQueue[PackedBatch] = queue.SimpleQueue()
        for batch in ring:
            self._free.put(batch)
        self._ready: queue.Queue[PackedBatch | BaseException | None] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="pack-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[PackedBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            self._free.put(item)

    def close(self) -> None:
        """Ends the thread; batches already yielded stay as they are."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "PackPrefetcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            for pack_idx in self._pack_indices:
                batch = self._free_batch()
                if batch is None or not self._hand_over(self._reader.read(pack_idx, out=batch)):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the pack is asked for
            self._hand_over(error)
        self._hand_over(None)

    def _free_batch(self) -> PackedBatch | None:
        while not self._closed.is_set():
            try:
                return self._free.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def _hand_over(self, item: PackedBatch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
