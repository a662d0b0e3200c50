"""Packs gathered in the background, ahead of the one who trains on them."""

import queue
import threading
from collections.abc import Iterable
from types import TracebackType

from dsm_engine.data.packed_batch import PackedBatch, PackReader

_POLL_S = 0.1  # how soon the worker sees that nobody reads any more


class PackPrefetcher:
    """Reads packs in a thread of its own into a ring of buffers, at most `depth` ahead.

    An iterator over the packs in the order given; a batch is valid until the next one is asked for,
    when its buffers go back to the ring. An error of a pack is raised where that pack would have
    come, and ends the iteration. Closing, or leaving the `with` block, ends the thread and the
    iteration, also for one who waits.

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
        self._shared = _Shared(depth, ring)
        self._held: PackedBatch | None = None
        # The thread knows what is shared and not this object, so that one who forgets to close it
        # ends the thread with the last reference.
        self._thread = threading.Thread(
            target=self._shared.fill, args=(reader, pack_indices), name="pack-prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> "PackPrefetcher":
        return self

    def __next__(self) -> PackedBatch:
        if self._held is not None:
            self._shared.free.put(self._held)
            self._held = None
        item = self._shared.next_item()
        if isinstance(item, PackedBatch):
            self._held = item
            return item
        self._shared.closed.set()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Ends the thread; a batch already handed out stays as it is."""
        self._shared.closed.set()
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

    def __del__(self) -> None:
        if hasattr(self, "_shared"):
            self._shared.closed.set()


_Item = PackedBatch | BaseException | None  # a pack, what went wrong, or the end


class _Shared:
    """The two queues between the thread and the reader; every wait ends when they are closed."""

    def __init__(self, depth: int, ring: list[PackedBatch]) -> None:
        self.free: queue.SimpleQueue[PackedBatch] = queue.SimpleQueue()
        for batch in ring:
            self.free.put(batch)
        self.ready: queue.Queue[_Item] = queue.Queue(depth)
        self.closed = threading.Event()

    def next_item(self) -> _Item:
        while not self.closed.is_set():
            try:
                return self.ready.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def fill(self, reader: PackReader, pack_indices: Iterable[int]) -> None:
        try:
            for pack_idx in pack_indices:
                batch = self._free_batch()
                if batch is None or not self._hand_over(reader.read(pack_idx, out=batch)):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the pack is asked for
            self._hand_over(error)
        self._hand_over(None)

    def _free_batch(self) -> PackedBatch | None:
        while not self.closed.is_set():
            try:
                return self.free.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def _hand_over(self, item: _Item) -> bool:
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
