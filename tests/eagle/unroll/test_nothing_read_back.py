"""The path of an accelerator on tensors without numbers: shapes and devices fit, and nothing waits for a value."""

import contextlib

import pytest
import torch

from eaglepipe.eagle.kernels import fused_head, row_kernels
from eaglepipe.eagle.losses import StepLoss
from eaglepipe.eagle.unroll import attention_runs
from eaglepipe.eagle.unroll import slot_plan as plan
from eaglepipe.eagle.unroll.interface import HostMasks
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from tests.eagle.kernels.test_lk_losses import with_mass
from tests.eagle.toy_drafts import make_document, make_draft, make_trainer, packed
from tests.eagle.unroll.test_sparse_rows import sparse_batch

META = torch.device("meta")


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for one that has all kernels; autocast knows it not."""
    autocast = torch.autocast
    monkeypatch.setattr(attention_runs, "varlen_works", lambda *_: True)
    monkeypatch.setattr(row_kernels, "available", lambda _: True)
    monkeypatch.setattr(row_kernels, "compiled_works", lambda *_: False)
    monkeypatch.setattr(fused_head, "wide_products_work", lambda *_: True)
    monkeypatch.setattr(
        plan.Runs, "on", lambda device, runs: plan.Runs(runs=runs, spans=plan.KeySpans.of(runs, device))
    )
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **given: contextlib.nullcontext() if kind == "meta" else autocast(kind, **given)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)


def on_meta(value):
    if isinstance(value, SparseTargets):
        return SparseTargets(**{name: tensor.to(META) for name, tensor in vars(value).items()})
    return value.to(META)


@pytest.mark.parametrize("kind", ["ce", "lambda"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_step_is_taken_without_a_value_from_the_device(kind, sparse, accelerator):
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    batch = sparse_batch(batch, 5) if sparse else batch
    masks = HostMasks(
        attention_mask=batch["attention_mask"].bool(),
        loss_mask=batch["loss_mask"],
        position_mask=batch["position_mask"][..., 0],
        seq_lens=batch["seq_lens"],
        doc_remaining=batch["doc_remaining"],
        row_offsets=batch["target_probs"].row_offsets if sparse else None,
        id_bounds=torch.tensor([0, 1]) if sparse else None,
    )
    if kind == "lambda":
        batch = {**with_mass(batch), "mean_alphas": torch.full((4,), 0.5)}
    draft = make_draft()
    trainer = make_trainer(draft, 4, loss=StepLoss(kind=kind)).to(META)
    metrics = trainer(**{name: on_meta(value) for name, value in batch.items()}, masks=masks)
    metrics.loss.backward()
    assert metrics.loss.device == META
    assert all(parameter.grad.shape == parameter.shape for parameter in draft.parameters() if parameter.requires_grad)


def test_a_value_that_is_asked_for_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device=META).sum().item()
