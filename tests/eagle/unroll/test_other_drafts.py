"""Drafts of other classes go through the reference unroll, and give what the compact one gives for the same weights."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.losses import StepLoss
from eaglepipe.eagle.unroll.drafts import is_plain
from tests.eagle.toy_drafts import (
    DRAFT_SIZE,
    VOCAB_SIZE,
    gradients,
    make_document,
    make_draft,
    make_trainer,
    packed,
    padded,
    selected_ids,
)

DOCUMENTS = [make_document(14, 0), make_document(9, 1)]


class Held(nn.Module):
    """A draft that another module holds, without a config."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def project_hidden_states(self, aux: torch.Tensor) -> torch.Tensor:
        return self.inner.project_hidden_states(aux)

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner.compute_logits(states)


class Passing(Held):
    def forward(self, *args: Any, **keywords: Any) -> torch.Tensor:
        return self.inner(*args, **keywords)


class ByKeyword(Held):
    def forward(self, **keywords: Any) -> torch.Tensor:
        return self.inner(**keywords)


class Named(Held):
    """Another order and the other name of the carried state."""

    def forward(
        self,
        attention_mask: torch.Tensor,
        projected_hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        cache_hidden: Any,
        seq_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert attention_mask.shape == input_ids.shape
        return self.inner(
            input_ids, projected_hidden_states, attention_mask, cache_hidden=cache_hidden, seq_lens=seq_lens
        )


class Overridden(LlamaEagle3DraftModel):
    """A subclass whose logits are its own."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().compute_logits(hidden_states) + 0.0


class Scaled(nn.Linear):
    """A projection that reads its weight otherwise, as adapters and quantised ones do."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(states)


def patched(draft: Any) -> Any:
    forward = draft.forward
    draft.forward = partial(forward)
    return draft


def overridden(draft: Any) -> Any:
    made = Overridden(draft.config)
    made.load_state_dict(draft.state_dict())
    return made


def scaled(draft: Any) -> Any:
    projection = draft.model.layers[0].self_attn.q_proj
    draft.model.layers[0].self_attn.q_proj = Scaled(projection.in_features, projection.out_features, bias=False)
    draft.model.layers[0].self_attn.q_proj.weight = nn.Parameter(2 * projection.weight.detach())
    return draft


OTHERS: dict[str, Any] = {
    "passing": Passing, "by keyword": ByKeyword, "named": Named, "patched": patched, "overridden": overridden,
}  # fmt: skip
BATCHES = {"padded": padded(DOCUMENTS), "packed": packed([DOCUMENTS, DOCUMENTS[:1]], 26)}


def trainer_of(draft: Any, **keywords: Any) -> Eagle3TrainerModule:
    mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    mask[selected_ids()] = True
    return Eagle3TrainerModule(draft, selected_ids(), mask, 3, **keywords)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 2, "norm_output": True}])
def test_other_drafts_equal_the_compact_unroll(other: Any, batch: dict[str, torch.Tensor], shape: Any) -> None:
    draft = make_draft(**shape)
    wrapped = other(copy.deepcopy(draft))
    assert is_plain(draft) and not is_plain(wrapped)
    expected = make_trainer(draft, 3)(**batch)
    found = trainer_of(wrapped)(**batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-6)
    for name in ("accuracy", "valid_tokens", "counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    wanted = gradients(draft, expected.loss)
    got = {name.removeprefix("inner."): gradient for name, gradient in gradients(wrapped, found.loss).items()}
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_replaced_parts_are_called() -> None:
    batch, loss = BATCHES["padded"], StepLoss(kind="lambda")
    extra = {"draft_mass": torch.full(batch["input_ids"].shape, 0.9)}
    expected = make_trainer(make_draft(), 3, loss=loss)(**batch, **extra).loss
    found = trainer_of(scaled(make_draft()), loss=loss)(**batch, **extra).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Bigram(nn.Module):
    """As small as a draft can be: no keys, no positions, no config."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, 8)
        self.project_hidden_states = nn.Linear(72, 8)
        self.compute_logits = nn.Linear(8, DRAFT_SIZE)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.embed(tokens) + state)


def test_a_draft_with_the_three_methods_alone_is_trained() -> None:
    torch.manual_seed(0)
    draft, batch = Bigram(), BATCHES["padded"]
    state, loss, weights = draft.project_hidden_states(batch["aux_hidden_states"]), torch.zeros(()), 0.0
    ids, probs, mask = batch["input_ids"], batch["target_probs"], batch["position_mask"][..., 0]
    for step in range(3):
        state = draft(ids, state)
        losses = -(probs * draft.compute_logits(state).log_softmax(-1)).sum(-1)
        loss = loss + 0.8**step * (losses * mask).sum() / mask.sum().clamp(min=1)
        weights += 0.8**step
        ids, probs, mask = (torch.cat((t[:, 1:], torch.zeros_like(t[:, :1])), 1) for t in (ids, probs, mask))
    metrics = trainer_of(draft)(**batch)
    torch.testing.assert_close(metrics.loss, loss / weights)
    metrics.loss.backward()
    assert all(parameter.grad is not None for parameter in draft.parameters())


def test_what_cannot_be_unrolled_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="a Embedding is no EAGLE-3 draft: it has no project_hidden_states, compute_l"):
        trainer_of(nn.Embedding(3, 3))
    with pytest.raises(ValueError, match="takes no seq_lens, so packed documents would read each other"):
        trainer_of(Bigram())(**BATCHES["packed"])
    draft = Bigram()
    draft.compute_logits = nn.Linear(8, 3)
    with pytest.raises(ValueError, match=r"the draft's logits has shape \[2, 14, 3\]; expected \[2, 14, 29\]"):
        trainer_of(draft)(**BATCHES["padded"])


def test_the_carried_state_has_two_names_and_one_value() -> None:
    draft = make_draft()
    ids, state = torch.arange(5)[None], torch.randn(1, 5, 24)
    assert torch.equal(draft(ids, state), draft(input_ids=ids, projected_hidden_states=state))
    for arguments in ({}, {"hidden_states": state, "projected_hidden_states": state}):
        with pytest.raises(ValueError, match="carried state once"):
            draft(ids, **arguments)
