"""The path of an accelerator on tensors without numbers: shapes and devices fit, and nothing waits for a value."""

import contextlib

import pytest
import torch

from eaglepipe.eagle.kernels import fused_head, row_kernels
from eaglepipe.eagle.losses import StepLoss
from eaglepipe.eagle.unroll import span_tables as tables
from eaglepipe.eagle.unroll.attention import spans
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from tests.eagle.kernels.test_lk_losses import with_mass
from tests.eagle.toy_drafts import make_document, make_draft, make_trainer, packed, packed_batch
from tests.eagle.unroll.test_sparse_rows import sparse_batch

META = torch.device("meta")


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for one that has all kernels; autocast knows it not."""
    autocast = torch.autocast
    monkeypatch.setattr(spans, "varlen_works", lambda *_: True)
    monkeypatch.setattr(row_kernels, "available", lambda _: True)
    monkeypatch.setattr(row_kernels, "compiled_works", lambda *_: False)
    monkeypatch.setattr(fused_head, "wide_products_work", lambda *_: True)
    monkeypatch.setattr(
        tables.StepSpans,
        "on",
        lambda device, spans: tables.StepSpans(spans=spans, tables=tables.VarlenTables.of(spans, device)),
    )
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **given: contextlib.nullcontext() if kind == "meta" else autocast(kind, **given)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)


def on_meta(value):
    if isinstance(value, SparseTargets):
        moved = {name: getattr(value, name).to(META) for name in ("probs", "ids", "row_offsets", "tail")}
        return SparseTargets(**moved, layout=value.with_layout().layout)
    return value.to(META)


@pytest.mark.parametrize("kind", ["ce", "lambda"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_step_is_taken_without_a_value_from_the_device(kind, sparse, accelerator):
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    batch = sparse_batch(batch, 5) if sparse else batch
    batch = with_mass(batch) if kind == "lambda" else batch
    draft = make_draft()
    trainer = make_trainer(draft, 4, loss=StepLoss(kind=kind)).to(META)
    inputs = TrainerInputs(
        batch=packed_batch(batch).to(META),
        aux_hidden_states=on_meta(batch["aux_hidden_states"]),
        target_probs=on_meta(batch["target_probs"]),
        draft_mass=on_meta(batch["draft_mass"]) if kind == "lambda" else None,
    )
    mean_alphas = torch.full((4,), 0.5, device=META) if kind == "lambda" else None
    metrics = trainer.compute_loss(inputs, mean_alphas=mean_alphas)
    metrics.loss.backward()
    assert metrics.loss.device == META
    assert all(parameter.grad.shape == parameter.shape for parameter in draft.parameters() if parameter.requires_grad)


def test_a_value_that_is_asked_for_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device=META).sum().item()
