"""Speculative decoding of a batch of prompts, and by the same path the target alone (a drafter that proposes nothing).

A round is one forward of the target over each row's newest token and the guesses below it.
Shapes: B rows, P padded prompt length, m nodes on a path.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from eaglepipe.decoding.drafters import Drafter, Verified
from eaglepipe.decoding.verify import Decision, SamplingRule, ancestors_of, choose, decide
from eaglepipe.target.stepping import Read, SteppingTarget

Prompt = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When an answer ends."""

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One answer and how it came about."""

    token_ids: tuple[int, ...]  # with the stop token that ended it
    rounds: tuple[int, ...]  # tokens that each round added; the first token is the prompt's forward's


@dataclass(frozen=True, kw_only=True)
class DecodeRun:
    """All answers, in the order of their prompts."""

    answers: tuple[Decoded, ...]
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)


@dataclass
class _Row:
    """A row on its way."""

    prompt: int
    sequence: list[int]
    limits: Limits
    answer: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    ended: bool = False

    def take(self, tokens: Sequence[int]) -> int:
        """Add what fits before the end; returns how many tokens that were."""
        before = len(self.answer)
        for token in tokens:
            self.answer.append(token)
            if token in self.limits.stop_ids or len(self.answer) == self.limits.max_new_tokens:
                self.ended = True
                break
        self.sequence.extend(tokens)
        return len(self.answer) - before


@torch.inference_mode()
def speculate(
    target: SteppingTarget,
    drafter: Drafter,
    prompts: Sequence[Prompt],
    *,
    rule: SamplingRule,
    limits: Limits,
    batch_size: int,
    generator: torch.Generator,
) -> DecodeRun:
    """Continue every prompt; prompts of similar length share a batch.

    Raises:
        TargetError: a sequence longer than the target reads exactly.
    """
    order = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
    target.check_room(max(len(prompt) for prompt in prompts) + limits.max_new_tokens)
    done: dict[int, Decoded] = {}
    started = time.monotonic()
    for start in range(0, len(order), batch_size):
        rows = [_Row(prompt=i, sequence=prompts[i].tolist(), limits=limits) for i in order[start : start + batch_size]]
        _decode_batch(target, drafter, rows, rule, generator)
        done |= {row.prompt: Decoded(token_ids=tuple(row.answer), rounds=tuple(row.rounds)) for row in rows}
    seconds = time.monotonic() - started
    return DecodeRun(answers=tuple(done[prompt] for prompt in range(len(prompts))), seconds=seconds)


def _decode_batch(
    target: SteppingTarget, drafter: Drafter, rows: list[_Row], rule: SamplingRule, generator: torch.Generator
) -> None:
    input_ids, lengths = _padded([row.sequence for row in rows], target.device)
    read = target.read_prompts(input_ids, lengths)
    newest = choose(read.logits[:, 0], rule, generator)
    for row, token in zip(rows, newest.tolist(), strict=True):
        row.take([token])
    verified = _running(rows, _verified_prompts(read, input_ids, lengths, newest, rows), (target,))
    rows = [row for row in rows if not row.ended]
    drafter.begin(len(rows))
    while rows:
        drafter.extend(verified)
        proposal = drafter.propose(generator)
        newest = torch.tensor([row.sequence[-1] for row in rows], device=target.device)
        read = target.read(torch.cat((newest[:, None], proposal.tokens), dim=1), ancestors_of(proposal.parents))
        decision = decide(proposal, read.logits, rule, generator)
        target.keep(decision.nodes, decision.counts)
        verified = _running(rows, _take(rows, read, decision, proposal.tokens), (target, drafter))
        rows = [row for row in rows if not row.ended]


class _Batch(Protocol):
    def select(self, rows: torch.Tensor) -> None: ...


def _running(rows: list[_Row], verified: Verified, batches: Sequence[_Batch]) -> Verified:
    """Take the rows that have ended out of every batch; what is left of `verified`."""
    running = [number for number, row in enumerate(rows) if not row.ended]
    if len(running) == len(rows) or not running:
        return verified
    kept = torch.tensor(running, device=verified.counts.device)
    for batch in batches:
        batch.select(kept)
    return Verified(
        aux=verified.aux[kept],
        last_hidden=None if verified.last_hidden is None else verified.last_hidden[kept],
        next_tokens=verified.next_tokens[kept],
        counts=verified.counts[kept],
        sequences=[rows[number].sequence for number in running],
    )


def _verified_prompts(
    read: Read, input_ids: torch.Tensor, lengths: torch.Tensor, newest: torch.Tensor, rows: list[_Row]
) -> Verified:
    following = F.pad(input_ids[:, 1:], (0, 1))
    following = following.scatter(1, lengths[:, None] - 1, newest[:, None])
    return Verified(
        aux=read.states.aux,
        last_hidden=read.states.last_hidden,
        next_tokens=following,
        counts=lengths,
        sequences=[row.sequence for row in rows],
    )


def _take(rows: list[_Row], read: Read, decision: Decision, guesses: torch.Tensor) -> Verified:
    """Give each row the tokens of its path, and the drafter the states along it."""
    counts = decision.counts
    steps = torch.arange(decision.nodes.shape[1], device=counts.device)
    on_path = F.pad(guesses, (1, 0)).gather(1, decision.nodes)
    following = F.pad(on_path[:, 1:], (0, 1))
    following = torch.where(steps == counts[:, None] - 1, decision.own_token[:, None], following)
    for row, tokens, count in zip(rows, following.tolist(), counts.tolist(), strict=True):
        row.rounds.append(row.take(tokens[:count]))
    batch = torch.arange(len(counts), device=counts.device)[:, None]
    return Verified(
        aux=read.states.aux[batch, decision.nodes],
        last_hidden=read.states.last_hidden[batch, decision.nodes],
        next_tokens=following,
        counts=counts,
        sequences=[row.sequence for row in rows],
    )


def _padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, P], zeros on the right, and lengths [B]."""
    lengths = [len(sequence) for sequence in sequences]
    ids = np.zeros((len(sequences), max(lengths)), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return torch.from_numpy(ids).to(device), torch.tensor(lengths, device=device)
