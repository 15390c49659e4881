"""Drafters that turn the steps of a draft into a proposal: a chain, EAGLE-2's dynamic tree, or all depths at once.

Shapes: B rows, K depth, w nodes that a tree level grows from, M nodes grown, N proposed, D draft vocabulary.
"""

from collections.abc import Sequence

import torch

from eaglepipe.decoding.draft_steps import DraftSteps, ParallelSteps, SequentialSteps
from eaglepipe.decoding.drafters import DraftMethod, Proposal, VerifiedSlots, chain_proposal
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.target.steps.sampling import distribution, draw


class _SteppedDrafter:
    """State and logits of each row's newest slot, renewed by every `extend`."""

    def __init__(self, steps: SequentialSteps) -> None:
        self._steps = steps

    def begin(self, num_rows: int) -> None:
        self._steps.begin(num_rows)

    def extend(self, verified: VerifiedSlots) -> None:
        self._state, self._logits = self._steps.extend(verified)

    def select(self, rows: torch.Tensor) -> None:
        self._state, self._logits = self._state[rows], self._logits[rows]
        self._steps.select(rows)


class ChainDrafter(_SteppedDrafter):
    """Drafts K tokens one after the other: each the likeliest, or sampled from the draft's own distribution."""

    def __init__(self, steps: SequentialSteps, depth: int, rule: SamplingRule) -> None:
        super().__init__(steps)
        self._rule = rule
        self.method = DraftMethod(drafter=steps.name, shape="chain", depth=depth, size=depth)

    def propose(self, generator: torch.Generator) -> Proposal:
        state, logits, depth = self._state[:, None], self._logits[:, None], self.method.depth
        chain = []
        for step in range(1, depth + 1):
            token, probs = _choose_guesses(self._steps, logits, self._rule, generator)
            chain.append((token, probs))
            if step < depth:
                visible = torch.ones(len(token), 1, step, dtype=torch.bool, device=token.device)
                state, logits = self._steps.step(token, state, visible, step)
        return _proposal(chain)


class ParallelDrafter:
    """Drafts a chain of K tokens in one pass of the draft's layers.

    The depths are chosen at once, or, if the steps are chained, one after the other by the draft's head alone.
    """

    def __init__(self, steps: ParallelSteps, depth: int, rule: SamplingRule) -> None:
        self._steps, self._rule = steps, rule
        self.method = DraftMethod(drafter=steps.name, shape="chain", depth=depth, size=depth)

    def begin(self, num_rows: int) -> None:
        self._steps.begin(num_rows)

    def extend(self, verified: VerifiedSlots) -> None:
        self._logits = self._steps.draft_all(verified, self.method.depth)
        self._newest = verified.next_tokens.gather(1, verified.counts[:, None] - 1)

    def propose(self, generator: torch.Generator) -> Proposal:
        if not self._steps.is_chained:
            return chain_proposal(*_choose_guesses(self._steps, self._logits, self._rule, generator))
        previous, chain = self._newest, []
        for depth in range(self.method.depth):
            logits = self._steps.follow(self._logits[:, depth], previous[:, 0], depth)[:, None]
            previous, probs = _choose_guesses(self._steps, logits, self._rule, generator)
            chain.append((previous, probs))
        return _proposal(chain)

    def select(self, rows: torch.Tensor) -> None:
        self._logits, self._newest = self._logits[rows], self._newest[rows]
        self._steps.select(rows)


class TreeDrafter(_SteppedDrafter):
    """Drafts EAGLE-2's tree: each level grows from the `width` likeliest nodes; the best `size` of all are proposed.

    A node's score is the log probability of its path. Nodes are chosen without randomness, so that the target's own
    draws decide which are accepted (see `verify`).
    """

    def __init__(self, steps: SequentialSteps, *, depth: int, width: int, size: int) -> None:
        super().__init__(steps)
        self._width = width
        self.method = DraftMethod(drafter=steps.name, shape="tree", depth=depth, size=size)

    def propose(self, generator: torch.Generator) -> Proposal:
        scores, tokens = (level.flatten(1) for level in _likeliest(self._logits[:, None], self._width))  # [B, M]
        batch, width = tokens.shape
        parents = torch.full_like(tokens, -1)
        frontier = torch.arange(width, device=tokens.device).expand(batch, -1)  # the w nodes to grow from, among the M
        states = self._state[:, None].expand(-1, width, -1)
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        visible = itself
        for depth in range(1, self.method.depth):
            states, logits = self._steps.step(tokens.gather(1, frontier), states, visible, depth)
            child_scores, child_tokens = _likeliest(logits, width)  # [B, w, w]
            child_scores = (child_scores + scores.gather(1, frontier)[:, :, None]).flatten(1)
            num_nodes, best = scores.shape[1], child_scores.topk(width, dim=1).indices
            scores = torch.cat((scores, child_scores), dim=1)
            tokens = torch.cat((tokens, child_tokens.flatten(1)), dim=1)
            parents = torch.cat((parents, frontier.repeat_interleave(width, dim=1)), dim=1)
            grown_from, frontier = (best // width)[:, :, None], num_nodes + best
            states = states.gather(1, grown_from.expand(-1, -1, states.shape[-1]))
            visible = torch.cat((visible.gather(1, grown_from.expand_as(visible)), itself), dim=-1)
        tokens, parents = _best_nodes(scores, tokens, parents, self.method.size)
        return Proposal(tokens=self._steps.to_target_ids(tokens), parents=parents)


def _proposal(chain: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> Proposal:
    """Return the chain of guesses [B, 1] and distributions [B, 1, V] that `_choose_guesses` gave at each depth."""
    sampled = [probs for _, probs in chain if probs is not None]
    tokens = torch.cat([token for token, _ in chain], dim=1)
    return chain_proposal(tokens, torch.cat(sampled, dim=1) if sampled else None)


def _choose_guesses(
    steps: DraftSteps, logits: torch.Tensor, rule: SamplingRule, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return target ids [B, n] for logits [B, n, D], and the distributions [B, n, V] that they were sampled from."""
    if rule.greedy:
        return steps.to_target_ids(logits.argmax(dim=-1)), None
    probs = distribution(logits.float(), rule.temperature, rule.top_p)
    probs = probs / probs.sum(dim=-1, keepdim=True)
    tokens = steps.to_target_ids(draw(probs, generator))
    if steps.target_ids is None:
        return tokens, probs
    target_probs = probs.new_zeros(*probs.shape[:-1], steps.vocab_size)
    target_probs[..., steps.target_ids] = probs
    return tokens, target_probs


def _likeliest(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log probabilities and draft ids of the likeliest tokens, [B, n, w] each, for logits [B, n, D]."""
    best = logits.float().log_softmax(dim=-1).clamp(max=0.0).topk(min(width, logits.shape[-1]), dim=-1)
    return best.values, best.indices


def _best_nodes(
    scores: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and renumbered parents, [B, N] each, of the `size` best of nodes [B, M], in their order.

    No child scores above its parent and ties go to the earlier node, so that the parents of chosen nodes are chosen.
    """
    chosen = scores.sort(dim=1, descending=True, stable=True).indices[:, :size].sort(dim=1).values
    numbers = torch.full_like(parents, -1)
    numbers.scatter_(1, chosen, torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen))
    old_parents = parents.gather(1, chosen)
    new_parents = torch.where(old_parents < 0, -1, numbers.gather(1, old_parents.clamp(min=0)))
    return tokens.gather(1, chosen), new_parents
