"""A second backward over one loss says why there is none, with or without retain_graph."""

from collections.abc import Callable

import pytest
import torch

from tests.eagle import toy_eagle1
from tests.eagle.peagle.peagle_oracle import make_peagle, make_peagle_draft
from tests.eagle.toy_drafts import make_document, make_draft, make_trainer, packed, padded

DOCUMENTS = [make_document(12, 0), make_document(9, 1)]


def eagle3_loss(**keywords: object) -> torch.Tensor:
    return make_trainer(make_draft().train(), **keywords)(**padded(DOCUMENTS)).loss


def checkpointed_loss() -> torch.Tensor:
    draft = make_draft().train()
    draft.gradient_checkpointing = True
    return make_trainer(draft)(**padded(DOCUMENTS)).loss


def peagle_loss(partitions: int) -> torch.Tensor:
    trainer = make_peagle(make_peagle_draft().train(), sequence_partitions=partitions)
    return trainer(**packed([DOCUMENTS], 24)).loss


def eagle1_loss() -> torch.Tensor:
    target, draft = toy_eagle1.make_target(), toy_eagle1.make_draft()
    batch = toy_eagle1.arguments([toy_eagle1.documents(target, [9, 6])], 16)
    return toy_eagle1.make_trainer(target, draft)(**batch).loss


LOSSES: dict[str, Callable[[], torch.Tensor]] = {
    "compact": eagle3_loss,
    "EAGLE-1": eagle1_loss,
    "checkpointed": checkpointed_loss,
    "P-EAGLE": lambda: peagle_loss(1),
    "partitions": lambda: peagle_loss(2),
}


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_second_backward_is_refused_with_the_reason(make: Callable[[], torch.Tensor], retain: bool) -> None:
    loss = make()
    loss.backward(retain_graph=retain)
    with pytest.raises(RuntimeError, match=r"backward through .* a second time"):
        loss.backward()


def test_reference_unroll_keeps_its_graph_for_a_second_backward() -> None:
    draft = make_draft()
    loss = make_trainer(draft, implementation="reference")(**padded(DOCUMENTS)).loss
    (first,) = torch.autograd.grad(loss, draft.lm_head.weight, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(loss, draft.lm_head.weight)[0])
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_gradients_of_gradients_are_refused() -> None:
    draft = make_draft()
    loss = make_trainer(draft)(**padded(DOCUMENTS)).loss
    gradients = torch.autograd.grad(loss, list(draft.parameters()), create_graph=True, allow_unused=True)
    norm = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        norm.backward()
