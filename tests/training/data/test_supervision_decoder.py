from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from eaglepipe.eagle.core import Eagle3StepMetrics, Eagle3TrainerModule, _shift_left_with_zero
from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.eagle.unroll.interface import EncodedTargets, TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import densify
from eaglepipe.recipe.family_settings import Eagle3DraftConfig
from eaglepipe.target_head import HeadSpec, TargetHead
from eaglepipe.training.data.collate import encode_batch, pack_documents, sparse_layout
from eaglepipe.training.data.supervision_decoder import SupervisionDecoder
from eaglepipe.training.objectives.builders import build_eagle3_draft
from tests.training.tiny_source import DRAFT_VOCAB, VOCAB, TinySource, tiny_source

CPU = torch.device("cpu")


def inputs_of(
    source: TinySource,
    rows: tuple[tuple[int, ...], ...],
    share: SequenceShare | None = None,
    *,
    at_once: int | None = None,
) -> TrainerInputs:
    packed = pack_documents(tuple(tuple(source.read(i) for i in row) for row in rows), share)
    batch = encode_batch(packed, pinned=False, run=lambda copy: copy())
    batch = replace(batch, sparse_layout=sparse_layout(batch.supervision))
    return SupervisionDecoder(source, device=CPU, dtype=torch.float32, at_once=at_once).decode(batch)


def trainer(source: TinySource) -> Eagle3TrainerModule:
    draft = build_eagle3_draft(source, Eagle3DraftConfig(), seed=0)
    return Eagle3TrainerModule(draft, source.vocab.selected_token_ids, source.vocab.selected_token_mask, 3)


def gradients(module: nn.Module, metrics: Eagle3StepMetrics) -> list[torch.Tensor]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(metrics.loss, parameters))


def live_arguments(source: TinySource, sample: int) -> dict[str, torch.Tensor]:
    """What a live target would hand over for one unpadded sample: full-vocabulary logits that agree with the cache."""
    cached = source.read(sample)
    hidden = torch.zeros(len(cached.input_ids), source.spec.rows.row_shape[0])
    rows = torch.from_numpy(cached.supervision["last_hidden_states"].copy()).view(torch.float32)
    hidden[torch.from_numpy(cached.supervised.copy())] = rows
    logits = torch.full((len(hidden), VOCAB), -1e4)
    logits[:, source.vocab.selected_token_ids] = hidden @ source.tensors["lm_head.weight"].T
    uncovered = torch.from_numpy(cached.supervised & ~cached.position_mask)
    outside = int((~source.vocab.selected_token_mask).nonzero()[0])
    logits[uncovered, outside] = 1e4
    ids = torch.from_numpy(cached.input_ids.copy()).long()[None]
    return {
        "input_ids": _shift_left_with_zero(ids),
        "attention_mask": torch.ones_like(ids),
        "loss_mask": _shift_left_with_zero(torch.from_numpy(cached.supervised.copy())[None]),
        "aux_hidden_states": torch.from_numpy(cached.aux_payload.copy()).view(torch.float32)[None],
        "target_logits": _shift_left_with_zero(logits[None]),
        "doc_remaining": torch.arange(len(hidden) - 1, -1, -1)[None],
    }


def test_cached_and_live_supervision_agree_bit_for_bit() -> None:
    source = tiny_source()
    module = trainer(source)
    for sample in range(4):
        cached = module.compute_loss(inputs_of(source, ((sample,),)))
        live = module(**live_arguments(source, sample))
        assert torch.equal(cached.loss, live.loss)
        for mine, theirs in zip(gradients(module, cached), gradients(module, live), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("supervision", ["hidden", "dense", "sparse"])
def test_packed_documents_learn_what_padded_rows_learn(supervision: str) -> None:
    source = tiny_source(supervision=supervision)
    module = trainer(source)
    packed = module.compute_loss(inputs_of(source, ((0, 1, 2), (3,))))
    padded = module.compute_loss(inputs_of(source, ((0,), (1,), (2,), (3,))))
    assert packed.counts.tolist() == padded.counts.tolist()
    assert packed.hits.tolist() == padded.hits.tolist() and packed.valid.tolist() == padded.valid.tolist()
    torch.testing.assert_close(packed.loss, padded.loss, rtol=1e-5, atol=0)
    for mine, theirs in zip(gradients(module, packed), gradients(module, padded), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_dense_and_hidden_caches_give_the_same_distribution() -> None:
    rows = ((0, 1), (2,))
    dense, hidden = (inputs_of(tiny_source(supervision=kind), rows) for kind in ("dense", "hidden"))
    assert dense.target_probs.shape == (int(dense.batch.position_mask.sum()), DRAFT_VOCAB)
    torch.testing.assert_close(dense.target_probs, hidden.target_probs)


def test_sparse_cache_gives_the_kept_probabilities_of_the_slots_that_count() -> None:
    rows = ((0, 1), (2,), (3, 4))
    dense, sparse = (inputs_of(tiny_source(supervision=kind), rows) for kind in ("dense", "sparse"))
    targets = sparse.target_probs
    assert torch.equal(sparse.batch.position_mask, dense.batch.position_mask)
    assert targets.row_offsets[0] == 0 and targets.row_offsets[-1] == len(targets.ids) == len(targets.probs)
    assert targets.row_offsets.diff().unique().numel() > 1  # rows of different lengths
    for row, expected in enumerate(dense.target_probs):
        span = slice(*targets.row_offsets[row : row + 2].tolist())
        torch.testing.assert_close(targets.probs[span].float(), expected[targets.ids[span]], rtol=1e-3, atol=0)
        assert float(targets.probs[span].float().sum() + targets.tail[row]) == pytest.approx(1.0, abs=1e-6)
        assert float(targets.tail[row]) <= 0.101


def test_ids_above_the_signed_range_stay_themselves() -> None:
    """uint16 holds a draft vocabulary of 65,536; 40,000 must not come back negative."""
    source = tiny_source(supervision="sparse")
    columns = source.samples[0].supervision
    for dtype, offset in ((np.uint16, 40_000), (np.uint32, 3_000_000_000)):
        ids = columns["target_ids"].astype(dtype) + dtype(offset)
        moved = replace(source.samples[0], supervision={**columns, "target_ids": ids})
        shifted = inputs_of(replace(source, samples=(moved,)), ((0,),)).target_probs.ids
        assert torch.equal(shifted, inputs_of(source, ((0,),)).target_probs.ids + offset)


def test_head_applies_bias_scale_and_soft_cap_in_float32() -> None:
    hidden, weight = torch.randn(5, 4, dtype=torch.bfloat16), torch.randn(6, 4, dtype=torch.bfloat16)
    head = TargetHead(weight=weight, bias=torch.arange(6.0), spec=HeadSpec(logit_scale=0.5, soft_cap=3.0))
    expected = torch.tanh(0.5 * (hidden.double() @ weight.double().T + torch.arange(6.0).double()) / 3.0) * 3.0
    probabilities = head.probabilities(hidden)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.double(), expected.softmax(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("supervision", ["hidden", "dense", "sparse"])
def test_shares_of_a_batch_are_the_rows_of_their_slots(supervision: str) -> None:
    source, rows = tiny_source(supervision=supervision), ((0, 1, 2, 3), (4, 5))
    whole = inputs_of(source, rows)
    for rank in range(2):
        share = SequenceShare(rank=rank, size=2, reach=2, least_block=3)
        part = inputs_of(source, rows, share)
        assert torch.equal(part.aux_hidden_states, whole.aux[share.owned(whole.batch.shape)])
        read = share.read(whole.batch.shape)[whole.batch.position_mask]
        if isinstance(whole.target_probs, torch.Tensor):
            assert torch.equal(part.target_probs, whole.target_probs[read])
        else:
            dense, expected = (densify(one.target_probs, DRAFT_VOCAB) for one in (part, whole))
            assert all(torch.equal(found, of_all[read]) for found, of_all in zip(dense, expected, strict=True))


@pytest.mark.parametrize("supervision", ["hidden", "dense"])
def test_more_rows_than_fit_at_once_stay_encoded(supervision: str) -> None:
    source, rows = tiny_source(supervision=supervision), ((0, 1, 2),)
    whole, encoded = inputs_of(source, rows), inputs_of(source, rows, at_once=4)
    assert isinstance(encoded.target_probs, EncodedTargets) and encoded.num_target_rows == whole.num_target_rows
    assert torch.equal(encoded.target_rows(slice(3, 7)).probs, whole.target_probs[3:7])
    expected, found = (trainer(source).compute_loss(inputs).loss for inputs in (whole, encoded))
    assert torch.equal(found, expected)
