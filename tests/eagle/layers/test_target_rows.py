"""Embeddings that a draft starts from, however the target holds them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from eaglepipe.errors import DraftError, EaglepipeError, VocabError
from tests.eagle.toy_drafts import VOCAB_SIZE, make_draft

WEIGHT = torch.randn(VOCAB_SIZE, 24)


class Shard:
    """A tensor as a shard of it: gathered on demand, of another shape until then."""

    shape = torch.Size((VOCAB_SIZE // 2, 24))

    def full_tensor(self) -> torch.Tensor:
        return WEIGHT


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def embedding() -> nn.Embedding:
    return nn.Embedding.from_pretrained(WEIGHT.clone())


class ParallelEmbedding(nn.Module):
    """No nn.Embedding, as those of tensor-parallel targets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.to(torch.float64))


HELD: dict[str, Any] = {
    "embedding": embedding(),
    "tensor": WEIGHT,
    "wrapper": Wrapper(Wrapper(embedding())),
    "other module": ParallelEmbedding(),
    "plain object": SimpleNamespace(weight=WEIGHT),
    "shard": Shard(),
    "object with a shard": SimpleNamespace(weight=Shard()),
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_embeddings_are_copied_however_they_are_held(held: Any) -> None:
    draft = make_draft()
    draft.copy_embeddings_from_target(held)
    assert torch.equal(draft.model.embed_tokens.weight, WEIGHT)


def test_what_does_not_fit_is_a_value_error_that_says_so() -> None:
    draft = make_draft()
    before = draft.model.embed_tokens.weight.clone()
    with pytest.raises(ValueError, match=r"\(41, 20\) do not fit the draft's \(41, 24\)"):
        draft.copy_embeddings_from_target(SimpleNamespace(weight=torch.zeros(VOCAB_SIZE, 20)))
    with pytest.raises(ValueError, match="a SimpleNamespace has no weight to copy"):
        draft.copy_embeddings_from_target(SimpleNamespace())  # type: ignore[arg-type]
    assert torch.equal(draft.model.embed_tokens.weight, before)


@pytest.mark.parametrize("error", [DraftError, VocabError])
def test_errors_of_the_modules_are_value_errors_with_their_exit_code(error: type[EaglepipeError]) -> None:
    assert issubclass(error, ValueError) and error.exit_code == 2 and str(error("what")) == "what"
