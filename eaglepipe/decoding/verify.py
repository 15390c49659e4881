"""Verification of guesses, so that the output is distributed as the target's own.

Guesses drawn from a distribution q are accepted with probability min(1, p/q), and the first rejected one is replaced by
a draw from the excess of p over q (Leviathan et al., arXiv 2211.17192). Guesses chosen without randomness (greedy
chains, trees, tables) need less: the target draws its own next token, and the path continues while a guess equals it.
Shapes: B rows, N guesses, V vocabulary; node 0 is the newest token, node i+1 guess i.
"""

from dataclasses import dataclass

import torch

from eaglepipe.decoding.drafters import Proposal
from eaglepipe.target.steps.sampling import distribution, draw


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """Temperature and nucleus of the target's next token; greedy at temperature 0."""

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, kw_only=True)
class AcceptedPaths:
    """The accepted path of each row, and the target's own token after it."""

    nodes: torch.Tensor  # int64 [B, m], the newest token first; undefined beyond `counts`
    counts: torch.Tensor  # int64 [B], nodes on the path: accepted guesses + 1
    next_token: torch.Tensor  # int64 [B]


def ancestor_mask(parents: torch.Tensor) -> torch.Tensor:
    """Return bool [B, N+1, N+1] for the parents [B, N] of guesses: True if node i is node j or a descendant of it."""
    batch, num_guesses = parents.shape
    parent = torch.cat((parents.new_full((batch, 1), -1), parents), dim=1) + 1  # of every node; the root's is itself
    mask = torch.eye(num_guesses + 1, dtype=torch.bool, device=parents.device).repeat(batch, 1, 1)
    ancestor = parent
    while True:
        mask.scatter_(2, ancestor[:, :, None], True)
        if not bool(ancestor.any()):
            return mask
        ancestor = parent.gather(1, ancestor)


def verify(proposal: Proposal, logits: torch.Tensor, rule: SamplingRule, generator: torch.Generator) -> AcceptedPaths:
    """Accept guesses by the target's logits [B, N+1, V] after every node."""
    if proposal.probs is None:
        return _matching_path(proposal, choose_tokens(logits, rule, generator))
    return _accepted_chain(proposal, proposal.probs, distribution(logits, rule.temperature, rule.top_p), generator)


def choose_tokens(logits: torch.Tensor, rule: SamplingRule, generator: torch.Generator) -> torch.Tensor:
    """Return the target's own next tokens, int64 [...], for logits [..., V]."""
    if rule.greedy:
        return logits.argmax(dim=-1)
    return draw(distribution(logits, rule.temperature, rule.top_p), generator)


def _matching_path(proposal: Proposal, target_tokens: torch.Tensor) -> AcceptedPaths:
    """Follow the guesses that equal the target's choice at their parent; `target_tokens` int64 [B, N+1]."""
    rows = torch.arange(len(target_tokens), device=target_tokens.device)
    node, counts = torch.zeros_like(rows), torch.ones_like(rows)
    path, active = [node], torch.ones_like(rows, dtype=torch.bool)
    for _ in range(proposal.tokens.shape[1]):
        is_child = proposal.parents == node[:, None] - 1
        matches = is_child & (proposal.tokens == target_tokens[rows, node][:, None]) & active[:, None]
        active = matches.any(dim=1)
        if not bool(active.any()):
            break
        node = torch.where(active, matches.int().argmax(dim=1) + 1, node)
        counts = counts + active
        path.append(node)
    return AcceptedPaths(nodes=torch.stack(path, dim=1), counts=counts, next_token=target_tokens[rows, node])


def _accepted_chain(
    proposal: Proposal, draft_probs: torch.Tensor, weights: torch.Tensor, generator: torch.Generator
) -> AcceptedPaths:
    """Apply Leviathan's rule to a chain: q [B, K, V], and the target's p [B, K+1, V] up to a factor."""
    target_probs = weights / weights.sum(dim=-1, keepdim=True)
    batch, depth = proposal.tokens.shape
    tokens = proposal.tokens[..., None]
    p, q = target_probs[:, :depth].gather(-1, tokens)[..., 0], draft_probs.gather(-1, tokens)[..., 0]
    uniform = torch.rand(batch, depth, generator=generator, device=p.device, dtype=torch.float64)
    num_accepted = (uniform * q < p).long().cumprod(dim=1).sum(dim=1)
    rows = torch.arange(batch, device=p.device)
    next_probs = target_probs[rows, num_accepted]
    excess = (next_probs - draft_probs[rows, num_accepted.clamp(max=depth - 1)]).clamp(min=0.0)
    use_excess = (num_accepted < depth) & (excess.sum(dim=-1) > 0)
    next_probs = torch.where(use_excess[:, None], excess, next_probs)
    nodes = torch.arange(depth + 1, device=p.device).expand(batch, -1)
    return AcceptedPaths(nodes=nodes, counts=num_accepted + 1, next_token=draw(next_probs, generator))
