"""Gradient checkpointing is one attribute of a draft, whoever sets it; results are the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import checkpoint

from eaglepipe.eagle import draft_llama_v12, peagle_draft
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from tests.eagle import toy_eagle1
from tests.eagle.peagle.peagle_oracle import make_peagle, make_peagle_draft
from tests.eagle.toy_drafts import gradients, make_document, make_draft, make_trainer, packed, padded

DOCUMENTS = [make_document(12, 0), make_document(9, 1)]


def set_attribute(draft: Any) -> None:
    draft.gradient_checkpointing = True


def enable(draft: Any) -> None:
    draft._set_gradient_checkpointing(enable=True)  # behind the method, whose name depends on the version


def set_inside(draft: Any) -> None:
    draft.base_model.gradient_checkpointing = True


def eagle3(draft: Any) -> torch.Tensor:
    return make_trainer(draft)(**padded(DOCUMENTS)).loss


def eagle3_reference(draft: Any) -> torch.Tensor:
    return make_trainer(draft, implementation="reference")(**padded(DOCUMENTS)).loss


def peagle(draft: Any) -> torch.Tensor:
    return make_peagle(draft)(**packed([DOCUMENTS], 24), cod_seeds=torch.tensor([[1, 2]])).loss


def eagle1(draft: Any) -> torch.Tensor:
    target = toy_eagle1.make_target()
    batch = toy_eagle1.arguments([toy_eagle1.documents(target, [9, 6])], 16)
    return toy_eagle1.make_trainer(target, draft)(**batch).loss


@pytest.mark.parametrize("switch", [set_attribute, enable, set_inside])
@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (make_draft, eagle3),
        (make_draft, eagle3_reference),
        (make_peagle_draft, peagle),
        (toy_eagle1.make_draft, eagle1),
    ],
)
def test_one_switch_checkpoints_each_layer_and_changes_no_gradient(
    make: Callable[..., Any],
    loss: Callable[[Any], torch.Tensor],
    switch: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def counted(function: Any, *args: Any, **keywords: Any) -> Any:
        calls.append(function)
        return checkpoint.checkpoint(function, *args, **keywords)

    for module in (peagle_draft, draft_llama_v12):
        monkeypatch.setattr(module, "checkpoint", counted)
    draft = make(num_hidden_layers=2).train()
    expected = gradients(draft, loss(draft))
    assert not calls and not draft.gradient_checkpointing
    switch(draft)
    assert draft.gradient_checkpointing and draft.base_model.gradient_checkpointing
    torch.testing.assert_close(gradients(draft, loss(draft)), expected, rtol=1e-5, atol=1e-6)
    trained = len(calls)
    assert trained >= 2
    draft.eval()
    loss(draft)
    assert len(calls) == trained


def test_the_draft_of_a_config_that_asks_for_it_has_it() -> None:
    config = make_draft().config
    config.gradient_checkpointing = True
    assert LlamaEagle3DraftModel(config).gradient_checkpointing
