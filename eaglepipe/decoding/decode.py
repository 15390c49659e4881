"""Speculative decoding of a batch of prompts; with a drafter that proposes nothing, decoding by the target alone.

A round is one forward of the target over each row's newest token and the guesses below it.
Shapes: B rows, P padded prompt length, m nodes on a path.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from eaglepipe.decoding.drafters import Drafter, VerifiedSlots
from eaglepipe.decoding.verify import AcceptedPaths, SamplingRule, ancestor_mask, choose_tokens, verify
from eaglepipe.target.steps.stepping import SteppingTarget, TargetOutput


@dataclass(frozen=True, kw_only=True)
class StoppingCriteria:
    """Limits of an answer: its number of tokens, and tokens that end it."""

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class DecodedAnswer:
    """Tokens of one answer, and how many of them each round added."""

    token_ids: tuple[int, ...]  # including the stop token that ended it
    rounds: tuple[int, ...]  # without the first token, which the prompt's forward gives
    accepted: tuple[int, ...] = field(default=(), compare=False)
    """Guesses that each round accepted, beyond the end of the answer too; none of text that was only replayed."""


@dataclass(frozen=True, kw_only=True)
class DecodedAnswers:
    """All answers, in the order of their prompts, and the seconds they took."""

    answers: tuple[DecodedAnswer, ...]
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)


@dataclass
class _Row:
    """A prompt being continued."""

    prompt: int
    sequence: list[int]
    criteria: StoppingCriteria
    answer: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    ended: bool = False

    def decoded(self) -> DecodedAnswer:
        rounds, accepted = tuple(self.rounds), tuple(self.accepted)
        return DecodedAnswer(token_ids=tuple(self.answer), rounds=rounds, accepted=accepted)

    def append(self, tokens: Sequence[int]) -> int:
        """Add tokens up to the end of the answer; return how many that were."""
        before = len(self.answer)
        for token in tokens:
            self.answer.append(token)
            self.ended = token in self.criteria.stop_ids or len(self.answer) == self.criteria.max_new_tokens
            if self.ended:
                break
        self.sequence.extend(tokens)
        return len(self.answer) - before


@torch.inference_mode()
def speculate(
    target: SteppingTarget,
    drafter: Drafter,
    prompts: Sequence[NDArray[np.int32]],
    *,
    rule: SamplingRule,
    criteria: StoppingCriteria,
    batch_size: int,
    generator: torch.Generator,
) -> DecodedAnswers:
    """Continue every prompt; prompts of similar length share a batch.

    Raises:
        TargetError: a sequence may grow longer than the target reads exactly.
    """
    order = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
    target.check_room(max(len(prompt) for prompt in prompts) + criteria.max_new_tokens)
    answers: dict[int, DecodedAnswer] = {}
    started = time.monotonic()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [_Row(prompt=number, sequence=prompts[number].tolist(), criteria=criteria) for number in batch]
        _decode_batch(target, drafter, rows, rule, generator)
        answers |= {row.prompt: row.decoded() for row in rows}
    seconds = time.monotonic() - started
    return DecodedAnswers(answers=tuple(answers[prompt] for prompt in range(len(prompts))), seconds=seconds)


def _decode_batch(
    target: SteppingTarget, drafter: Drafter, rows: list[_Row], rule: SamplingRule, generator: torch.Generator
) -> None:
    input_ids = pad_sequence([torch.tensor(row.sequence) for row in rows], batch_first=True).to(target.device)
    lengths = torch.tensor([len(row.sequence) for row in rows], device=target.device)
    read = target.read_prompts(input_ids, lengths)
    newest = choose_tokens(read.logits[:, 0], rule, generator)
    for row, token in zip(rows, newest.tolist(), strict=True):
        row.append([token])
    prompt_slots = VerifiedSlots(
        aux=read.states.aux,
        last_hidden=read.states.last_hidden,
        next_tokens=F.pad(input_ids[:, 1:], (0, 1)).scatter(1, lengths[:, None] - 1, newest[:, None]),
        counts=lengths,
        sequences=[row.sequence for row in rows],
    )
    verified = _without_ended(rows, prompt_slots, target)
    rows = [row for row in rows if not row.ended]
    drafter.begin(len(rows))
    while rows:
        drafter.extend(verified)
        proposal = drafter.propose(generator)
        newest = torch.tensor([row.sequence[-1] for row in rows], device=target.device)
        read = target.read(torch.cat((newest[:, None], proposal.tokens), dim=1), ancestor_mask(proposal.parents))
        paths = verify(proposal, read.logits, rule, generator)
        target.keep(paths.nodes, paths.counts)
        verified = _without_ended(rows, _append_paths(rows, read, paths, proposal.tokens), target, drafter)
        rows = [row for row in rows if not row.ended]


def _without_ended(rows: list[_Row], verified: VerifiedSlots, *batches: SteppingTarget | Drafter) -> VerifiedSlots:
    """Drop the rows that have ended from the batches; return the verified slots of the others."""
    active = [number for number, row in enumerate(rows) if not row.ended]
    if len(active) == len(rows) or not active:
        return verified
    selected = torch.tensor(active, device=verified.counts.device)
    for batch in batches:
        batch.select(selected)
    return VerifiedSlots(
        aux=verified.aux[selected],
        last_hidden=None if verified.last_hidden is None else verified.last_hidden[selected],
        next_tokens=verified.next_tokens[selected],
        counts=verified.counts[selected],
        sequences=[rows[number].sequence for number in active],
    )


def _append_paths(rows: list[_Row], read: TargetOutput, paths: AcceptedPaths, guesses: torch.Tensor) -> VerifiedSlots:
    """Append to each row the tokens of its path; return the slots along the paths."""
    counts = paths.counts
    on_path = F.pad(guesses, (1, 0)).gather(1, paths.nodes)
    next_tokens = F.pad(on_path[:, 1:], (0, 1)).scatter(1, counts[:, None] - 1, paths.next_token[:, None])
    for row, tokens, count in zip(rows, next_tokens.tolist(), counts.tolist(), strict=True):
        row.rounds.append(row.append(tokens[:count]))
        row.accepted.append(count - 1)
    batch = torch.arange(len(counts), device=counts.device)[:, None]
    return VerifiedSlots(
        aux=read.states.aux[batch, paths.nodes],
        last_hidden=read.states.last_hidden[batch, paths.nodes],
        next_tokens=next_tokens,
        counts=counts,
        sequences=[row.sequence for row in rows],
    )
