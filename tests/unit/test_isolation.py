"""The isolation check holds on the model as it is, and finds every fault that is put into it."""

import math
from typing import Any

import pytest
import torch

from dsm_engine.data.packed_batch import NO_LABEL
from dsm_engine.model.attention.packs import packed_sequences
from dsm_engine.model.config import ModelConfig
from dsm_engine.model.gpt import build_chunks, initialize_weights
from dsm_engine.parallel.config import ParallelConfig
from dsm_engine.training.deterministic import deterministic_mode
from dsm_engine.training.isolation.check import IsolationOptions, check_pack, num_passes
from dsm_engine.training.isolation.numbers import (
    INPUT_GRADIENTS,
    KEYS,
    LOGITS,
    LOSSES,
    PARAMETER_GRADIENTS,
    STAGE_INPUTS,
    run_pass,
)
from dsm_engine.training.isolation.packs import (
    Pack,
    PackDocument,
    with_changed_document,
)
from dsm_engine.training.isolation.report import PackResult
from dsm_engine.training.stream import MicroBatch
from tests.isolation_faults import (
    BACKENDS,
    FAULTS,
    Backend,
    add_noise,
    ignore_tokens,
    run_positions_on,
)

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=96,
    init_method_std=0.1,
)
LENGTHS = (9, 14, 21, 1, 70, 13)  # the last is the tail padding
# A ten-millionth of the mean rounds to nothing in bf16: nothing leaks.
LEAKS = [
    (fault, precision)
    for fault in FAULTS
    for precision in ("fp32", "bf16")
    if (fault, precision) != ("mean leaks", "bf16")
]

pytestmark = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def _model(one_rank: Any, backend: Backend, precision: Any = "fp32") -> Any:
    (gpt,) = build_chunks(
        MODEL,
        ParallelConfig(),
        precision,
        one_rank,
        attention=backend.name,
        training=backend.has_backward,
    )
    initialize_weights([gpt], MODEL, one_rank, seed=3)
    return gpt


def _pack() -> Pack:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, MODEL.vocab_size, (1, sum(LENGTHS)), generator=generator)
    labels = torch.full_like(tokens, NO_LABEL)
    documents, start = [], 0
    for place, length in enumerate(LENGTHS):
        end, is_padding = start + length, place == len(LENGTHS) - 1
        if not is_padding:
            labels[0, start : end - 1] = tokens[0, start + 1 : end]
        documents.append(
            PackDocument(
                name="the tail padding" if is_padding else f"document {place}",
                start=start,
                end=end,
                is_supervised=not is_padding and length > 1,
                is_padding=is_padding,
            )
        )
        start = end
    batch = MicroBatch(
        tokens=tokens,
        labels=labels,
        loss_weights=(labels != NO_LABEL).float(),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        packed_seq_params=packed_sequences(
            torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32), LENGTHS, max(LENGTHS)
        ),
    )
    return Pack(pack_idx=7, batch=batch, documents=tuple(documents))


def _check(
    gpt: Any, one_rank: Any, backend: Backend, pack: Pack | None = None, **options: Any
) -> PackResult:
    options = {"gradients": backend.has_backward, **options}
    precision = "bf16" if next(gpt.parameters()).dtype == torch.bfloat16 else "fp32"
    with deterministic_mode():
        return check_pack(
            [gpt], pack or _pack(), MODEL, precision, one_rank, IsolationOptions(**options)
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sound_model_is_isolated_and_equals_its_documents_alone(
    one_rank: Any, backend: Backend, precision: Any
) -> None:
    gpt = _model(one_rank, backend, precision)
    result = _check(gpt, one_rank, backend)
    assert result.failure is None
    num_parameters = sum(parameter.numel() for parameter in gpt.parameters())
    others = (len(LENGTHS) - 1) * sum(LENGTHS)  # each of the documents is changed once
    gradients = int(backend.has_backward)
    assert result.num_compared == {
        LOSSES: others,
        LOGITS: others * MODEL.vocab_size,
        KEYS: others * 2 * 8,
        STAGE_INPUTS: others * MODEL.hidden_size,
        INPUT_GRADIENTS: gradients * others * MODEL.hidden_size,
        PARAMETER_GRADIENTS: gradients * len(LENGTHS) * num_parameters,
    }
    assert result.changed == tuple(document.name for document in _pack().documents)
    kinds = {LOSSES, LOGITS, KEYS} | ({PARAMETER_GRADIENTS} if gradients else set())
    assert set(result.agreements) == kinds


@pytest.mark.parametrize(("fault", "precision"), LEAKS)
def test_every_leak_between_documents_is_found(
    one_rank: Any, backend: Backend, fault: str, precision: Any
) -> None:
    if fault == "gradients leak" and not backend.has_backward:
        pytest.skip("there are no gradients")
    gpt = _model(one_rank, backend, precision)
    FAULTS[fault](gpt)
    result = _check(gpt, one_rank, backend)
    assert "documents are not isolated: other tokens in" in str(result.failure)
    kinds = {movement.kind for movement in result.movements}
    assert (LOGITS in kinds) == (fault != "gradients leak")
    if backend.has_backward and fault != "tail padding merged":  # padding has no loss
        assert {INPUT_GRADIENTS, PARAMETER_GRADIENTS} <= kinds


def test_the_report_names_the_documents_on_both_sides_of_a_moved_boundary(
    one_rank: Any, backend: Backend
) -> None:
    gpt = _model(one_rank, backend)
    FAULTS["boundary one late"](gpt)
    result = _check(gpt, one_rank, backend, gradients=False)
    # Document 1 is changed, and the first token of document 2, which it now holds, sees it.
    moved = {(movement.changed, movement.moved) for movement in result.movements}
    assert moved == {("document 1", "document 2")}
    by_kind = {movement.kind: movement for movement in result.movements}
    assert (by_kind[LOSSES].num_moved, by_kind[LOSSES].num_compared) == (1, 21)
    assert by_kind[LOGITS].largest > 1e-3
    assert "other tokens in document 1 moved 1 of 21 losses of document 2" in str(result.failure)


def test_a_leak_below_any_tolerance_is_found_by_its_bits(one_rank: Any, backend: Backend) -> None:
    gpt, pack = _model(one_rank, backend), _pack()
    FAULTS["mean leaks"](gpt)
    changed = with_changed_document(pack, pack.documents[0], MODEL.vocab_size)
    before, after = (
        run_pass([gpt], batch, one_rank, gradients=False).tokens[LOGITS].of(9, sum(LENGTHS))
        for batch in (pack.batch, changed)
    )
    torch.testing.assert_close(before, after)  # the usual tolerance sees nothing
    result = _check(gpt, one_rank, backend, gradients=False)
    assert 0 < result.num_moved(LOGITS) < result.num_compared[LOGITS]


def test_positions_that_run_on_across_documents_differ_from_the_documents_alone(
    one_rank: Any, backend: Backend
) -> None:
    gpt = _model(one_rank, backend)
    run_positions_on(gpt)
    result = _check(gpt, one_rank, backend)
    assert not result.movements
    assert "packed and unpacked differ by more than rounding: rotated keys" in str(result.failure)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", ["boundary one late", "boundary one early", "boundaries ignored"])
def test_a_moved_boundary_also_differs_from_the_documents_alone(
    one_rank: Any, backend: Backend, fault: str, precision: Any
) -> None:
    gpt = _model(one_rank, backend, precision)
    FAULTS[fault](gpt)
    agreements = _check(gpt, one_rank, backend, num_documents=1).agreements
    assert not any(agreements[kind].holds for kind in agreements)


def test_a_label_that_crosses_a_boundary_is_found(one_rank: Any, backend: Backend) -> None:
    pack = _pack()
    end = pack.documents[0].end
    pack.batch.labels[0, end - 1] = pack.batch.tokens[0, end]
    pack.batch.loss_weights[0, end - 1] = 1.0
    result = _check(_model(one_rank, backend), one_rank, backend, pack)
    moved = {(movement.changed, movement.moved, movement.kind) for movement in result.movements}
    assert ("document 1", "document 0", LOSSES) in moved
    assert not any(kind == LOGITS for _, _, kind in moved)


def test_a_change_that_reaches_nothing_is_no_proof(one_rank: Any, backend: Backend) -> None:
    gpt = _model(one_rank, backend)
    ignore_tokens(gpt)
    result = _check(gpt, one_rank, backend)
    assert not result.movements
    assert "did not reach the logits of document 0: nothing is shown" in str(result.failure)


def test_a_model_that_is_not_deterministic_is_no_proof(one_rank: Any, backend: Backend) -> None:
    gpt = _model(one_rank, backend)
    add_noise(gpt)
    result = _check(gpt, one_rank, backend, num_documents=1)
    assert "two passes over the same pack differ in the losses: the model is not" in str(
        result.failure
    )


def test_a_model_of_nans_is_no_proof(one_rank: Any, backend: Backend) -> None:
    gpt = _model(one_rank, backend)
    with torch.no_grad():
        gpt.decoder.final_layernorm.weight.fill_(math.nan)
    assert _check(gpt, one_rank, backend).failure is not None


def test_a_bound_lets_differences_pass_up_to_it(one_rank: Any, backend: Backend) -> None:
    gpt = _model(one_rank, backend)
    FAULTS["mean leaks"](gpt)
    assert _check(gpt, one_rank, backend, bound=1e-5).failure is None
    assert _check(gpt, one_rank, backend, bound=1e-12).movements


def test_passes_are_counted_before_they_are_run(one_rank: Any, backend: Backend) -> None:
    for gradients in {False, backend.has_backward}:
        done = []
        options = IsolationOptions(num_documents=3, gradients=gradients)
        check_pack(
            [_model(one_rank, backend)],
            _pack(),
            MODEL,
            "fp32",
            one_rank,
            options,
            lambda done=done: done.append(1),
        )
        assert len(done) == num_passes(_pack(), options)
