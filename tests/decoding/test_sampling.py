"""Sampled output is distributed as the target's own, whatever the drafter proposes."""

import numpy as np
import pytest
import torch

from eaglepipe.decoding.decode import StoppingCriteria, speculate
from eaglepipe.decoding.dflash_steps import DflashSteps
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.eagle3_steps import Eagle3Steps
from eaglepipe.decoding.strategies import ChainDrafter, ParallelDrafter, TreeDrafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.target.steps.sampling import distribution
from eaglepipe.target.steps.stepping import SteppingTarget
from tests.decoding.tiny_decoding import ChainedSteps, tiny_block_draft, tiny_draft, tiny_stepping

VOCAB, DRAFT_VOCAB, DRAWS = 6, 3, 15_000
PROMPT = [4, 4]
PLAIN, NUCLEUS = SamplingRule(temperature=1.0), SamplingRule(temperature=0.8, top_p=0.9)


@pytest.fixture(scope="module")
def target() -> SteppingTarget:
    return tiny_stepping(VOCAB, hidden_size=16, sharpness=0.7)


@torch.no_grad()
def joint_distribution(target: SteppingTarget, rule: SamplingRule) -> torch.Tensor:
    """Probability of each sequence of three tokens after the prompt, [V, V, V], by plain forwards."""

    def following(sequence: list[int]) -> torch.Tensor:
        ids = torch.tensor([sequence])
        hidden = target.model.capture(ids, torch.ones_like(ids)).last_hidden[0, -1:]
        weights = distribution(target.model.head_logits(hidden)[0], rule.temperature, rule.top_p).double()
        return weights / weights.sum()

    first = following(PROMPT)
    second = torch.stack([following([*PROMPT, a]) for a in range(VOCAB)])
    third = torch.stack([torch.stack([following([*PROMPT, a, b]) for b in range(VOCAB)]) for a in range(VOCAB)])
    return first[:, None, None] * second[:, :, None] * third


def drafter(name: str, target: SteppingTarget, rule: SamplingRule) -> Drafter:
    if name == "chained":
        parallel = tiny_draft(target, DRAFT_VOCAB, parallel_drafting=True, mask_token_id=0)
        return ParallelDrafter(ChainedSteps(parallel), 2, rule)
    if name == "block":
        return ParallelDrafter(DflashSteps(tiny_block_draft(target, DRAFT_VOCAB)), 2, rule)
    steps = Eagle3Steps(tiny_draft(target, DRAFT_VOCAB))
    return ChainDrafter(steps, 2, rule) if name == "chain" else TreeDrafter(steps, depth=2, width=2, size=5)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("chain", PLAIN), ("chain", NUCLEUS), ("chained", NUCLEUS), ("block", NUCLEUS), ("tree", NUCLEUS)],
)
def test_the_first_three_tokens_are_distributed_as_the_targets_own(
    target: SteppingTarget, name: str, rule: SamplingRule
) -> None:
    run = speculate(
        target,
        drafter(name, target, rule),
        [np.array(PROMPT, np.int32)] * DRAWS,
        rule=rule,
        criteria=StoppingCriteria(max_new_tokens=3),
        batch_size=DRAWS,
        generator=torch.Generator().manual_seed(1),
    )
    drawn = np.array([answer.token_ids for answer in run.answers])
    observed = np.bincount(np.ravel_multi_index(drawn.T, (VOCAB,) * 3), minlength=VOCAB**3)
    expected = joint_distribution(target, rule).flatten().numpy() * DRAWS
    assert observed[expected == 0].sum() == 0
    assert sum(rounds > 1 for answer in run.answers for rounds in answer.rounds) > DRAWS / 20
    assert z_score(observed, expected) < 3


def test_the_statistic_rejects_a_distribution_that_is_slightly_off(target: SteppingTarget) -> None:
    expected = joint_distribution(target, PLAIN).flatten().numpy() * DRAWS
    off = joint_distribution(target, SamplingRule(temperature=0.75)).flatten().numpy()
    assert z_score(np.random.default_rng(0).multinomial(DRAWS, off), expected) > 6


def z_score(observed: np.ndarray, expected: np.ndarray) -> float:
    """Wilson and Hilferty's normal deviate of Pearson's chi-square; cells with fewer than 5 expected are joined."""
    small = expected < 5
    o = np.append(observed[~small], observed[small].sum())
    e = np.append(expected[~small], expected[small].sum())
    o, e = o[e > 0], e[e > 0]
    freedom = len(e) - 1
    ratio = (((o - e) ** 2 / e).sum() / freedom) ** (1 / 3)
    return float((ratio - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom)))
