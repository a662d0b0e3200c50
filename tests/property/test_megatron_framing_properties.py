"""Prefix, suffix and EOD around any ids: what a plain loop over the texts makes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsm_engine.data.megatron_preprocess import _framed
from dsm_engine.data.tokenizers.flat_ids import flat_ids

IDS = st.lists(st.integers(10, 99), max_size=4)
MARKS = st.lists(st.integers(1, 5), max_size=2)
DOCUMENTS = st.lists(st.lists(IDS, max_size=3), max_size=5)


@given(documents=DOCUMENTS, prefix=MARKS, suffix=MARKS, eod=st.none() | st.just(7))
def test_framing_is_what_a_loop_does(
    documents: list[list[list[int]]], prefix: list[int], suffix: list[int], eod: int | None
) -> None:
    expected_ids: list[int] = []
    expected_lengths: list[int] = []
    expected_counts: list[int] = []
    for texts in documents:
        sequences = [ids for text in texts if (ids := [*prefix, *text, *suffix])]
        if sequences and eod is not None:
            sequences[-1].append(eod)
        expected_ids += [token for ids in sequences for token in ids]
        expected_lengths += map(len, sequences)
        expected_counts.append(len(sequences))
    tokenizer: Any = SimpleNamespace(prefix=prefix, suffix=suffix, dtype=np.dtype(np.uint16))
    ids, offsets = flat_ids([text for texts in documents for text in texts])
    counts = np.array([len(texts) for texts in documents], np.int64)
    found, lengths, num_sequences = _framed(ids, np.diff(offsets), counts, tokenizer, eod)
    assert found.dtype == np.uint16
    assert found.tolist() == expected_ids
    assert lengths.tolist() == expected_lengths
    assert num_sequences.tolist() == expected_counts
