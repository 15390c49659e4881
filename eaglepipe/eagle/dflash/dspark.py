"""The DSpark draft: DFlash's backbone, whose guesses learn of the token before them from a Markov head.

The anchor's slot guesses too, and a confidence head forecasts whether a guess is accepted (arXiv 2607.05147).
"""

from typing import Any

import torch
from torch import nn

from eaglepipe.eagle.dflash.draft import DFlashDraftModel

GATED = "gated"


class MarkovHead(nn.Module):
    """A bias of the logits of rank r by the token before: `markov_w2` of that token's embedding in `markov_w1`.

    With `markov_head_type` gated, a sigmoid of the state and that embedding scales the embedding first.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        rank = config.markov_rank
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.draft_vocab_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size + rank, rank) if config.markov_head_type == GATED else None

    def forward(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Return what `markov_w2` reads: states [..., H] and target ids int64 [...] -> [..., r]."""
        embeds: torch.Tensor = self.markov_w1(previous).to(states.dtype)
        if self.gate_proj is None:
            return embeds
        return torch.sigmoid(self.gate_proj(torch.cat((states, embeds), dim=-1))) * embeds


class ConfidenceHead(nn.Module):
    """A forecast of acceptance: one linear unit."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(num_inputs, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logit of each row: [..., inputs] -> [...]."""
        logits: torch.Tensor = self.proj(inputs)[..., 0]
        return logits


class DSparkDraftModel(DFlashDraftModel):
    """`DFlashDraftModel` with the two heads; `config` has `markov_rank` and the like beside its fields."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.markov_head = MarkovHead(config)
        self.confidence_head: ConfidenceHead | None = None
        if config.enable_confidence_head:
            rank = config.markov_rank if config.confidence_head_with_markov else 0
            self.confidence_head = ConfidenceHead(config.hidden_size + rank)
        self.post_init()
        self.lm_head.weight.requires_grad_(False)
        self.freeze_embeddings()

    def markov_bias(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Return what is added to the logits: states [..., H] and target ids int64 [...] -> [..., D]."""
        bias: torch.Tensor = self.markov_head.markov_w2(self.markov_head(states, previous))
        return bias

    def forecast(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of acceptance [...], None without a confidence head."""
        if self.confidence_head is None:
            return None
        if not self.config.confidence_head_with_markov:
            return self.confidence_head(states)
        embeds = self.markov_head.markov_w1(previous).to(states.dtype)
        return self.confidence_head(torch.cat((states, embeds), dim=-1))
