"""How a draft's steps become a proposal: a chain, EAGLE-2's dynamic tree, or all depths at once.

Shapes: B rows, K depth, w nodes that a level of the tree grows from, N nodes proposed, D draft vocabulary.
"""

import torch

from eaglepipe.decoding.draft_steps import DraftSteps
from eaglepipe.decoding.drafters import Method, Proposal, Verified, chain_proposal
from eaglepipe.decoding.eagle3_steps import PeagleSteps
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.target.sampling import distribution, draw


class _Stepping:
    """What the strategies share: the newest slot's state and logits after each `extend`."""

    def __init__(self, steps: DraftSteps) -> None:
        self._steps = steps

    def begin(self, num_rows: int) -> None:
        self._steps.begin(num_rows)

    def extend(self, verified: Verified) -> None:
        self._state, self._logits = self._steps.extend(verified)

    def select(self, rows: torch.Tensor) -> None:
        self._state, self._logits = self._state[rows], self._logits[rows]
        self._steps.select(rows)


class ChainDrafter(_Stepping):
    """K tokens one after the other: each the likeliest, or drawn from the draft's own distribution."""

    def __init__(self, steps: DraftSteps, depth: int, rule: SamplingRule) -> None:
        super().__init__(steps)
        self._choose = _Choice(steps, rule)
        self.method = Method(drafter=steps.name, shape="chain", depth=depth, size=depth)

    def propose(self, generator: torch.Generator) -> Proposal:
        state, logits, depth = self._state[:, None], self._logits[:, None], self.method.depth
        tokens, probs = [], []
        for step in range(1, depth + 1):
            token, prob = self._choose(logits, generator)
            tokens.append(token)
            probs.append(prob)
            if step < depth:
                visible = torch.ones(len(token), 1, step, dtype=torch.bool, device=token.device)
                state, logits = self._steps.step(token, state, visible, step)
        return chain_proposal(torch.cat(tokens, dim=1), _joined(probs))


class ParallelDrafter:
    """P-EAGLE: a chain of K tokens from one pass; each depth's distribution is the same whatever the others draw."""

    def __init__(self, steps: PeagleSteps, depth: int, rule: SamplingRule) -> None:
        self._steps, self._choose = steps, _Choice(steps, rule)
        self.method = Method(drafter=steps.name, shape="chain", depth=depth, size=depth)

    def begin(self, num_rows: int) -> None:
        self._steps.begin(num_rows)

    def extend(self, verified: Verified) -> None:
        self._logits = self._steps.guess_all(verified, self.method.depth)

    def propose(self, generator: torch.Generator) -> Proposal:
        return chain_proposal(*self._choose(self._logits, generator))

    def select(self, rows: torch.Tensor) -> None:
        self._logits = self._logits[rows]
        self._steps.select(rows)


class TreeDrafter(_Stepping):
    """EAGLE-2: each level grows from the `width` nodes likeliest by cumulative confidence; the best `size` are kept.

    The choice of nodes draws nothing at random, so the target's own draws decide what is accepted (see `verify`).
    """

    def __init__(self, steps: DraftSteps, *, depth: int, width: int, size: int) -> None:
        super().__init__(steps)
        self._width = width
        self.method = Method(drafter=steps.name, shape="tree", depth=depth, size=size)

    def propose(self, generator: torch.Generator) -> Proposal:
        scores, tokens = _likeliest(self._logits[:, None], self._width)  # [B, 1, w]
        levels_scores, levels_tokens = [scores.flatten(1)], [tokens.flatten(1)]
        batch, width = levels_tokens[0].shape
        levels_parents = [torch.full_like(levels_tokens[0], -1)]
        frontier = torch.arange(width, device=tokens.device).expand(batch, -1)  # numbers among all nodes so far
        states = self._state[:, None].expand(-1, width, -1)
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        visible, num_nodes = own, width
        for depth in range(1, self.method.depth):
            all_scores, all_tokens = torch.cat(levels_scores, dim=1), torch.cat(levels_tokens, dim=1)
            states, logits = self._steps.step(all_tokens.gather(1, frontier), states, visible, depth)
            scores, tokens = _likeliest(logits, width)  # [B, w, w]
            scores = scores + all_scores.gather(1, frontier)[:, :, None]
            levels_scores.append(scores.flatten(1))
            levels_tokens.append(tokens.flatten(1))
            levels_parents.append(frontier.repeat_interleave(width, dim=1))
            best = scores.flatten(1).topk(width, dim=1).indices
            grown_from = best // width
            states = states.gather(1, grown_from[:, :, None].expand(-1, -1, states.shape[-1]))
            visible = torch.cat((visible.gather(1, grown_from[:, :, None].expand_as(visible)), own), dim=-1)
            frontier, num_nodes = num_nodes + best, num_nodes + width * width
        scores, tokens = torch.cat(levels_scores, dim=1), torch.cat(levels_tokens, dim=1)
        tokens, parents = _pruned(scores, tokens, torch.cat(levels_parents, dim=1), self.method.size)
        return Proposal(tokens=in_target_vocab(tokens, self._steps), parents=parents)


class _Choice:
    """The next token of each row, and the distribution over the target's vocabulary that it was drawn from."""

    def __init__(self, steps: DraftSteps, rule: SamplingRule) -> None:
        self._steps, self._rule = steps, rule

    def __call__(self, logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, n, D] -> target ids [B, n], and probabilities [B, n, V] when sampling."""
        if self._rule.greedy:
            return in_target_vocab(logits.argmax(dim=-1), self._steps), None
        probs = distribution(logits.float(), self._rule.temperature, self._rule.top_p)
        probs = probs / probs.sum(dim=-1, keepdim=True)
        token = in_target_vocab(draw(probs, generator), self._steps)
        ids = self._steps.target_ids
        if ids is None:
            return token, probs
        full = probs.new_zeros(*probs.shape[:-1], self._steps.vocab_size)
        full[..., ids] = probs
        return token, full


def in_target_vocab(draft_ids: torch.Tensor, steps: DraftSteps) -> torch.Tensor:
    """Draft ids of any shape as target ids."""
    return draft_ids if steps.target_ids is None else steps.target_ids[draft_ids]


def _joined(probs: list[torch.Tensor | None]) -> torch.Tensor | None:
    given = [prob for prob in probs if prob is not None]
    return torch.cat(given, dim=1) if given else None


def _likeliest(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits [B, n, D] the log probabilities and draft ids of the likeliest, [B, n, w] each."""
    best = logits.float().log_softmax(dim=-1).clamp(max=0.0).topk(min(width, logits.shape[-1]), dim=-1)
    return best.values, best.indices


def _pruned(
    scores: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `size` best of nodes [B, M], in the order they had: tokens and renumbered parents, [B, N] each.

    No child scores above its parent and ties go to the earlier node, so that a kept node's parent is kept.
    """
    kept = scores.sort(dim=1, descending=True, stable=True).indices[:, :size].sort(dim=1).values
    numbers = torch.full_like(parents, -1)
    numbers.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    old = parents.gather(1, kept)
    return tokens.gather(1, kept), torch.where(old < 0, -1, numbers.gather(1, old.clamp(min=0)))
