"""Which guesses are accepted, so that what comes out is what the target alone would give.

Guesses drawn from a distribution q are accepted with probability min(1, p/q), and the first refused one is replaced by
a draw from what p has more than q (Leviathan et al., arXiv 2211.17192). Guesses that nothing random chose (greedy
chains, trees, tables) need less: the target draws its own next token, and where a guess is that, the path goes on.
Shapes: B rows, N guesses, V vocabulary; node 0 is the newest token, node i+1 guess i.
"""

from dataclasses import dataclass

import torch

from eaglepipe.decoding.drafters import Proposal
from eaglepipe.target.sampling import distribution, draw


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """How the target's next token is chosen: greedily at temperature 0."""

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The accepted path of each row and the target's own token after it."""

    nodes: torch.Tensor  # int64 [B, m], the newest token first; beyond `counts` without meaning
    counts: torch.Tensor  # int64 [B], nodes on the path: accepted guesses and 1
    own_token: torch.Tensor  # int64 [B]


def ancestors_of(parents: torch.Tensor) -> torch.Tensor:
    """Parents [B, N] of guesses -> bool [B, N+1, N+1], True where node i is node j or lies below it."""
    batch, num_guesses = parents.shape
    up = torch.cat((parents.new_full((batch, 1), -1), parents), dim=1) + 1  # of every node; the root's own is itself
    below = torch.eye(num_guesses + 1, dtype=torch.bool, device=parents.device).repeat(batch, 1, 1)
    node = up
    while True:
        below.scatter_(2, node[:, :, None], True)
        if not bool(node.any()):
            return below
        node = up.gather(1, node)


def decide(proposal: Proposal, logits: torch.Tensor, rule: SamplingRule, generator: torch.Generator) -> Decision:
    """Accept guesses by the target's logits [B, N+1, V] after every node."""
    if proposal.probs is None:
        return _follow(proposal, choose(logits, rule, generator))
    return _accept_chain(proposal, proposal.probs, distribution(logits, rule.temperature, rule.top_p), generator)


def choose(logits: torch.Tensor, rule: SamplingRule, generator: torch.Generator) -> torch.Tensor:
    """The target's own next tokens: logits [..., V] -> int64 [...]."""
    if rule.greedy:
        return logits.argmax(dim=-1)
    return draw(distribution(logits, rule.temperature, rule.top_p), generator)


def _follow(proposal: Proposal, chosen: torch.Tensor) -> Decision:
    """The path on which every guess is what the target chose at its parent; `chosen` int64 [B, N+1]."""
    rows = torch.arange(len(chosen), device=chosen.device)
    node, counts = torch.zeros_like(rows), torch.ones_like(rows)
    path, going = [node], torch.ones_like(rows, dtype=torch.bool)
    for _ in range(proposal.num_guesses):
        wanted = chosen[rows, node]
        fits = (proposal.parents == node[:, None] - 1) & (proposal.tokens == wanted[:, None]) & going[:, None]
        going = fits.any(dim=1)
        if not bool(going.any()):
            break
        node = torch.where(going, fits.int().argmax(dim=1) + 1, node)
        counts = counts + going
        path.append(node)
    return Decision(nodes=torch.stack(path, dim=1), counts=counts, own_token=chosen[rows, node])


def _accept_chain(
    proposal: Proposal, draft_probs: torch.Tensor, weights: torch.Tensor, generator: torch.Generator
) -> Decision:
    """Leviathan's rule on a chain: q [B, K, V], and the target's p [B, K+1, V] up to a factor."""
    target_probs = weights / weights.sum(dim=-1, keepdim=True)
    batch, depth = proposal.tokens.shape
    tokens = proposal.tokens[..., None]
    p, q = target_probs[:, :depth].gather(-1, tokens)[..., 0], draft_probs.gather(-1, tokens)[..., 0]
    drawn = torch.rand(batch, depth, generator=generator, device=p.device, dtype=torch.float64)
    accepted = (drawn * q < p).long().cumprod(dim=1).sum(dim=1)
    rows = torch.arange(batch, device=p.device)
    own = target_probs[rows, accepted]
    refused_from = draft_probs[rows, accepted.clamp(max=depth - 1)]
    excess = (own - refused_from).clamp(min=0.0)
    use_excess = (accepted < depth) & (excess.sum(dim=-1) > 0)
    own = torch.where(use_excess[:, None], excess, own)
    nodes = torch.arange(depth + 1, device=p.device).expand(batch, -1)
    return Decision(nodes=nodes, counts=accepted + 1, own_token=draw(own, generator))
