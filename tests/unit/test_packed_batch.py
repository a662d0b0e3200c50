"""Gathering a pack: equal to the plain way, and nothing damaged gets through."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dsm_engine.data.pack_file import load_pack_index, save_pack_index
from dsm_engine.data.pack_index import STRATEGIES, PackIndex, build_pack_index
from dsm_engine.data.packed_batch import NO_LABEL, PackedBatch, PackReader
from dsm_engine.data.tokenized_dataset import TokenizedDataset, TokenizedDatasetWriter
from dsm_engine.errors import DsmError

ATTRIBUTES = {"id": "", "source": "s", "language": "en", "format": "cot", "topic": ""}
PAD_ID = 3


def _dataset(prefix: Path, documents, *, vocab_size: int = 500) -> TokenizedDataset:
    with TokenizedDatasetWriter(prefix, vocab_size=vocab_size) as writer:
        for ids, spans in documents:
            writer.add(ids, spans, **ATTRIBUTES)
        writer.finish()
    return TokenizedDataset(prefix)


def _random_documents(n: int, longest: int, seed: int = 0):
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(n):
        length = int(random.integers(1, longest + 1))
        cuts = sorted(set(random.integers(0, length + 1, 4).tolist()))
        spans = list(zip(cuts[::2], cuts[1::2], strict=False))
        documents.append((random.integers(0, 500, length).tolist(), spans))
    return documents


def _pieces(dataset: TokenizedDataset, packs: PackIndex, pack_idx: int):
    """(document, begin, end, slots) of what stands in a pack."""
    begin = 0 if packs.begins is None else int(packs.begins[pack_idx])
    room = packs.capacity
    for document in packs.pack(pack_idx).tolist():
        end = min(int(dataset.lengths[document]), begin + room)
        slots = min(-(-(end - begin) // packs.alignment) * packs.alignment, room)
        yield document, begin, end, slots
        room -= slots
        begin = 0


def _expected(dataset: TokenizedDataset, packs: PackIndex, pack_idx: int) -> dict[str, list]:
    """One pack, token by token."""
    batch: dict[str, list] = {"tokens": [], "labels": [], "position_ids": [], "document_ids": []}
    ends = [0]
    for document_id, (idx, begin, end, slots) in enumerate(_pieces(dataset, packs, pack_idx)):
        ids = dataset.document(idx).tolist()
        supervised = {t for first, last in dataset.spans(idx).tolist() for t in range(first, last)}
        known = len(ids) if packs.strategy == "concat_split" else end  # tokens a label may be
        for t in range(begin, begin + slots):
            has_label = t < end and t + 1 < known and t + 1 in supervised
            batch["tokens"].append(ids[t] if t < end else PAD_ID)
            batch["labels"].append(ids[t + 1] if has_label else NO_LABEL)
            batch["position_ids"].append(t - begin)
            batch["document_ids"].append(document_id)
        ends.append(ends[-1] + slots)
    padding = packs.capacity - len(batch["tokens"])
    batch["tokens"] += [PAD_ID] * padding
    batch["labels"] += [NO_LABEL] * padding
    batch["position_ids"] += range(padding)
    batch["document_ids"] += [len(ends) - 1] * padding
    batch["ends"] = [*ends, packs.capacity] if padding else ends
    return batch


def _check(batch: PackedBatch, expected: dict[str, list], max_documents: int) -> None:
    capacity = len(expected["tokens"])
    for name in ("tokens", "labels", "position_ids", "document_ids"):
        assert getattr(batch, name).tolist() == expected[name], name
    assert batch.loss_weights.tolist() == [float(x != NO_LABEL) for x in expected["labels"]]
    padded = expected["ends"] + [capacity] * (max_documents + 2 - len(expected["ends"]))
    assert batch.cu_seqlens.tolist() == padded
    assert batch.max_seqlen == max(np.diff(expected["ends"]))
    assert batch.num_documents == len(expected["ends"]) - 1
    assert batch.num_supervised == sum(label != NO_LABEL for label in expected["labels"])


@pytest.mark.parametrize("vocab_size", [500, 102400])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_packs_equal_those_gathered_token_by_token(
    tmp_path, strategy, vocab_size, alignment, index_dtype
) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(200, 60), vocab_size=vocab_size)
    packs = build_pack_index(
        dataset.lengths, capacity=64, strategy=strategy, seed=0, alignment=alignment
    )
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    batch = reader.allocate(index_dtype=index_dtype)
    num_supervised = 0
    for i in range(packs.num_packs):
        assert reader.read(i, out=batch) is batch
        _check(batch, _expected(dataset, packs, i), packs.max_documents())
        assert batch.document_idx.tolist() == packs.pack(i).tolist()
        num_supervised += batch.num_supervised
    assert num_supervised == dataset.num_supervised  # no label is lost, where a document is cut


@pytest.mark.parametrize("strategy", ["random", "best_fit", "first_fit_shuffle", "balanced"])
def test_truncated_documents_end_without_a_label(tmp_path: Path, strategy) -> None:
    documents = [([1, 2, 3, 4, 5], [(0, 5)]), ([6, 7], [(1, 2)])]
    dataset = _dataset(tmp_path / "x", documents)
    packs = build_pack_index(
        dataset.lengths, capacity=3, strategy=strategy, seed=0, overlong="truncate"
    )
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    batches = [reader.read(i) for i in range(2)]
    for i, batch in enumerate(batches):
        _check(batch, _expected(dataset, packs, i), packs.max_documents())
    cut = next(batch for batch in batches if batch.document_idx.tolist() == [0])
    assert cut.tokens.tolist() == [1, 2, 3]
    assert cut.labels.tolist() == [2, 3, NO_LABEL]


def test_a_document_cut_in_three_loses_no_label(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([10, 11, 12, 13, 14, 15, 16], [(1, 3), (4, 7)])])
    packs = build_pack_index(dataset.lengths, capacity=3, strategy="concat_split", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    batches = [reader.read(i) for i in range(3)]
    assert [batch.tokens.tolist() for batch in batches] == [
        [10, 11, 12],
        [13, 14, 15],
        [16, PAD_ID, PAD_ID],
    ]
    assert [batch.labels.tolist() for batch in batches] == [
        [11, 12, NO_LABEL],
        [14, 15, 16],
        [NO_LABEL] * 3,
    ]
    assert batches[2].cu_seqlens.tolist() == [0, 1, 3]
    assert batches[1].position_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_batch_read_at_once_equals_its_packs_read_alone(tmp_path: Path, threads: int) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(300, 60))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    wanted = [5, 0, packs.num_packs - 1, 5, *range(20)]
    out = [reader.allocate(index_dtype=np.int32) for _ in wanted]
    assert reader.read_batch(wanted, out=out, threads=threads) == out
    for pack_idx, batch in zip(wanted, out, strict=True):
        _check(batch, _expected(dataset, packs, pack_idx), packs.max_documents())
        assert batch.document_idx.tolist() == packs.pack(pack_idx).tolist()
    assert len(reader.read_batch([3, 4])) == 2
    assert reader.read_batch([]) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_pack_of_a_batch_is_an_error(tmp_path: Path, threads: int) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(30, 60))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    with pytest.raises(DsmError, match=f"asked for pack {packs.num_packs}"):
        reader.read_batch([0, 1, packs.num_packs, 2], threads=threads)
    with pytest.raises(ValueError, match="as many buffers as packs"):
        reader.read_batch([0, 1], out=[reader.allocate()])


def test_strange_batches_are_refused_or_read(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(300, 60))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    strided = np.arange(20)[::3]
    for pack_idx, batch in zip(strided.tolist(), reader.read_batch(strided), strict=True):
        assert batch.document_idx.tolist() == packs.pack(pack_idx).tolist()
    for bad in ([0.7], [[1, 2]]):
        with pytest.raises(DsmError, match="one row of integers"):
            reader.read_batch(bad)
    buffers = reader.allocate()
    with pytest.raises(ValueError, match="given twice"):
        reader.read_batch([0, 1], out=[buffers, buffers])
    with pytest.raises(ValueError, match="all int32 or all int64"):
        reader.read_batch([0, 1], out=[buffers, reader.allocate(index_dtype=np.int32)])
    with pytest.raises(DsmError, match="threads must be 1 to 1024, found 0"):
        reader.read_batch([0], threads=0)
    with pytest.raises(TypeError):
        reader._core.gather_batch(np.array([0]), [None], 1)  # type: ignore[list-item]


def test_buffers_of_other_shapes_or_types_are_refused(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([1, 2], [(1, 2)])])
    packs = build_pack_index(dataset.lengths, capacity=3, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    arrays = {f.name: getattr(reader.allocate(), f.name) for f in dataclasses.fields(PackedBatch)}
    arrays = {name: arrays[name] for name in list(arrays)[:6]}
    PackedBatch(**arrays)
    for change in (
        {"tokens": np.empty(3, np.int32)},
        {"tokens": np.empty(3, np.float64)},
        {"labels": np.empty(6, np.int64)[::2]},
        {"loss_weights": np.empty(3, np.float64)},
    ):
        with pytest.raises(TypeError):
            PackedBatch(**(arrays | change))
    with pytest.raises(ValueError, match="of one size"):
        PackedBatch(**(arrays | {"labels": np.empty(4, np.int64)}))
    read_only = np.empty(3, np.int64)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        PackedBatch(**(arrays | {"labels": read_only}))
    short = PackedBatch(**(arrays | {"cu_seqlens": np.empty(2, np.int32)}))
    with pytest.raises(ValueError, match="too small for this pack"):
        reader.read(0, out=short)


def test_a_pack_written_by_hand(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([10, 11, 12, 13], [(0, 1), (2, 4)])])
    packs = build_pack_index(dataset.lengths, capacity=6, strategy="random", seed=0)
    batch = PackReader(dataset, packs, pad_id=PAD_ID).read(0)
    assert batch.tokens.tolist() == [10, 11, 12, 13, 3, 3]
    assert batch.labels.tolist() == [-100, 12, 13, -100, -100, -100]
    assert batch.loss_weights.tolist() == [0, 1, 1, 0, 0, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.document_ids.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert (batch.max_seqlen, batch.num_documents, batch.num_supervised) == (4, 2, 2)


def test_a_full_pack_has_no_padding_document(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([1, 2], [(1, 2)]), ([4], [(0, 1)])])
    packs = build_pack_index(dataset.lengths, capacity=3, strategy="best_fit", seed=0)
    batch = PackReader(dataset, packs, pad_id=PAD_ID).read(0)
    assert batch.cu_seqlens.tolist() == [0, 2, 3, 3]
    assert (batch.num_documents, batch.num_supervised, batch.max_seqlen) == (2, 1, 2)


def test_reading_into_an_old_batch_leaves_nothing_of_it(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(100, 60))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    out = reader.read(0)
    for i in range(packs.num_packs):
        batch = reader.read(i, out=out)
        assert batch.tokens is out.tokens
        _check(batch, _expected(dataset, packs, i), packs.max_documents())


def test_an_index_of_another_dataset_is_refused(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([1, 2], []), ([4], [])])
    packs = build_pack_index([2, 2], capacity=4, strategy="random", seed=0)
    with pytest.raises(DsmError, match="x: the pack index was built for other documents"):
        PackReader(dataset, packs, pad_id=PAD_ID)


def test_packs_out_of_range_are_rejected(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", [([1, 2], [])])
    packs = build_pack_index(dataset.lengths, capacity=4, strategy="random", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    for pack_idx in (-1, 1):
        with pytest.raises(DsmError, match=f"has 1 packs, asked for pack {pack_idx}"):
            reader.read(pack_idx)


def _forged(packs: PackIndex, **changes) -> PackIndex:
    for name, value in changes.items():
        object.__setattr__(packs, name, value)
    return packs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": np.array([0, 9], np.int32)}, "has 2 documents, asked for document 9"),
        ({"documents": np.array([0, -1], np.int64)}, "asked for document -1"),
        ({"capacity": 2}, "do not fill it as planned .*built for other documents"),
        ({"offsets": np.array([0, 7], np.int64)}, "the pack index is damaged at pack 0"),
        ({"begins": np.array([-4], np.int32)}, "do not fill it as planned"),
        ({"begins": np.array([-(1 << 30)], np.int32)}, "do not fill it as planned"),
        ({"alignment": 0}, "multiple of the alignment, found 8 and 0"),
    ],
)
def test_forged_packs_are_rejected(tmp_path: Path, changes, message: str) -> None:
    dataset = _dataset(tmp_path / "x", [([1, 2], []), ([4], [])])
    packs = build_pack_index(dataset.lengths, capacity=8, strategy="random", seed=0)
    with pytest.raises(DsmError, match=message):
        PackReader(dataset, _forged(packs, **changes), pad_id=PAD_ID).read(0)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(64 + 8, 99), (64 + 8, -1), (64 + 24, 0xFFFF_FFFF), (64 + 24, 2 | 9 << 32), (64 + 24, 2)],
)
def test_damaged_spans_are_rejected(tmp_path: Path, offset: int, value: int) -> None:
    prefix = tmp_path / "x"
    _dataset(prefix, [([1, 2, 3], [(1, 3)]), ([4], [(0, 1)])])
    path = Path(f"{prefix}.spans")
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
    path.write_bytes(content)
    dataset = TokenizedDataset(prefix)
    packs = build_pack_index(dataset.lengths, capacity=8, strategy="random", seed=0)
    with pytest.raises(DsmError, match=r"x\.spans: is damaged: the spans of document"):
        PackReader(dataset, packs, pad_id=PAD_ID).read(0)


@pytest.mark.parametrize(
    ("vocab_size", "value"),
    [(500, 500), (500, 0xFFFF), (102400, 102400), (102400, -1), (102400, -(1 << 31))],
)
@pytest.mark.parametrize("position", [0, 5, 39])
def test_a_token_id_outside_the_vocabulary_is_rejected(
    tmp_path: Path, vocab_size: int, value: int, position: int
) -> None:
    prefix = tmp_path / "x"
    dataset = _dataset(prefix, [([7], []), (list(range(40)), [])], vocab_size=vocab_size)
    size = dataset.indexed.dtype.itemsize
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.seek((1 + position) * size)
        file.write(value.to_bytes(size, "little", signed=value < 0))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="random", seed=0)
    reader = PackReader(TokenizedDataset(prefix), packs, pad_id=PAD_ID)
    message = rf"x\.bin: is damaged: document 1 has the token id {value}, expected 0 to"
    with pytest.raises(DsmError, match=message):
        reader.read(0)


def test_the_last_id_of_the_vocabulary_is_a_token(tmp_path: Path) -> None:
    for vocab_size in (1, 500, 102400):
        dataset = _dataset(tmp_path / "x", [([vocab_size - 1] * 9, [])], vocab_size=vocab_size)
        packs = build_pack_index(dataset.lengths, capacity=9, strategy="random", seed=0)
        assert set(PackReader(dataset, packs, pad_id=0).read(0).tokens) == {vocab_size - 1}


def test_a_reader_keeps_what_it_reads_from(tmp_path: Path) -> None:
    def read() -> PackReader:
        dataset = _dataset(tmp_path / "x", [([1, 2, 3], [(1, 3)])])
        packs = build_pack_index(dataset.lengths, capacity=4, strategy="random", seed=0)
        save_pack_index(packs, tmp_path / "p")
        return PackReader(dataset, load_pack_index(tmp_path / "p"), pad_id=PAD_ID)

    reader = read()
    for suffix in (".bin", ".idx", ".spans"):
        Path(f"{tmp_path}/x{suffix}").unlink()
    assert reader.read(0).tokens.tolist() == [1, 2, 3, 3]


def test_asking_ahead_changes_nothing_and_names_a_pack_that_is_not_there(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "x", _random_documents(50, 60))
    packs = build_pack_index(dataset.lengths, capacity=64, strategy="concat_split", seed=0)
    reader = PackReader(dataset, packs, pad_id=PAD_ID)
    for i in range(packs.num_packs):
        reader.prefetch(i)
        _check(reader.read(i), _expected(dataset, packs, i), packs.max_documents())
    with pytest.raises(DsmError, match=f"asked for pack {packs.num_packs}"):
        reader.prefetch(packs.num_packs)
