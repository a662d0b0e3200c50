"""Packs read ahead in the background: the same packs, a bounded ring, errors in their place."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dsm_engine.data.pack_index import build_pack_index
from dsm_engine.data.packed_batch import PackReader
from dsm_engine.data.prefetch import PackPrefetcher
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.errors import DsmError


@pytest.fixture
def reader(tmp_path: Path) -> PackReader:
    random = np.random.default_rng(0)
    with TokenizedDatasetWriter(tmp_path / "x", vocab_size=500) as writer:
        for i in range(100):
            ids = random.integers(0, 500, int(random.integers(1, 60)))
            writer.add(
                ids, [(0, len(ids))], id=str(i), source="", language="en", format="cot", topic=""
            )
        writer.finish()
    dataset = TokenizedDataset(tmp_path / "x")
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    return PackReader(dataset, packs, pad_id=0)


@pytest.mark.parametrize("depth", [1, 4])
def test_packs_come_in_order_and_equal_those_read_alone(reader: PackReader, depth: int) -> None:
    wanted = [3, 1, 1, *range(reader.packs.num_packs)]
    with PackPrefetcher(reader, wanted, depth=depth) as prefetcher:
        count = 0
        for pack_idx, batch in zip(wanted, prefetcher, strict=True):
            alone = reader.read(pack_idx)
            assert np.array_equal(batch.tokens, alone.tokens)
            assert np.array_equal(batch.labels, alone.labels)
            assert batch.num_supervised == alone.num_supervised
            assert batch.document_idx.tolist() == alone.document_idx.tolist()
            count += 1
    assert count == len(wanted)


def test_no_more_than_the_ring_is_read_ahead(reader: PackReader) -> None:
    asked: list[int] = []

    def endless():
        for i in range(10**9):
            asked.append(i)
            yield i % reader.packs.num_packs

    with PackPrefetcher(reader, endless(), depth=3) as prefetcher:
        for _ in range(10):
            next(prefetcher)
        deadline = time.monotonic() + 5
        while len(asked) < 14 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(asked) <= 10 + 3 + 2  # yielded, ready, being handed over, being asked for


def test_buffers_of_the_caller_are_used_in_turn(reader: PackReader) -> None:
    buffers = [reader.allocate(index_dtype=np.int32) for _ in range(4)]
    with PackPrefetcher(reader, [0, 1, 2, 3, 4, 5, 6], depth=2, buffers=buffers) as prefetcher:
        used = [id(batch) for batch in prefetcher]
    assert set(used) <= {id(batch) for batch in buffers}
    assert len(used) == 7
    with pytest.raises(ValueError, match="at least 4 buffers, found 3"):
        PackPrefetcher(reader, [], depth=2, buffers=buffers[:3])
    with pytest.raises(ValueError, match="depth must be at least 1"):
        PackPrefetcher(reader, [], depth=0)


def test_an_error_is_raised_where_its_pack_would_come(reader: PackReader) -> None:
    with PackPrefetcher(reader, [0, 1, 10**6, 2]) as prefetcher:
        batches = iter(prefetcher)
        next(batches)
        next(batches)
        with pytest.raises(DsmError, match="asked for pack 1000000"):
            next(batches)


def test_closing_early_ends_the_thread(reader: PackReader) -> None:
    before = threading.active_count()
    with PackPrefetcher(reader, iter(lambda: 0, 1)) as prefetcher:
        next(iter(prefetcher))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_prefetcher_goes_on_where_it_was_left_and_ends_once(reader: PackReader) -> None:
    with PackPrefetcher(reader, range(9), depth=1) as prefetcher:
        first = [next(iter(prefetcher)).document_idx.tolist() for _ in range(5)]
        rest = [batch.document_idx.tolist() for batch in prefetcher]
        assert first + rest == [reader.packs.pack(i).tolist() for i in range(9)]
        assert list(prefetcher) == []
    assert list(prefetcher) == []


def test_an_error_ends_the_iteration(reader: PackReader) -> None:
    with PackPrefetcher(reader, [10**6, 0]) as prefetcher:
        with pytest.raises(DsmError):
            next(prefetcher)
        assert list(prefetcher) == []


def test_one_who_waits_is_let_go_when_it_is_closed(reader: PackReader) -> None:
    never = threading.Event()

    def blocked():
        yield 0
        never.wait(20)

    prefetcher = PackPrefetcher(reader, blocked())
    next(prefetcher)
    threading.Timer(0.2, never.set).start()
    closer = threading.Thread(target=prefetcher.close)
    closer.start()
    assert list(prefetcher) == []
    closer.join()


def test_a_forgotten_prefetcher_ends_its_thread(reader: PackReader) -> None:
    before = threading.active_count()
    prefetcher = PackPrefetcher(reader, iter(lambda: 0, 1))
    next(prefetcher)
    del prefetcher
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before
