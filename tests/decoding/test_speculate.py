import numpy as np
import pytest
import torch

from eaglepipe.decoding.decode import DecodedAnswers, StoppingCriteria, speculate
from eaglepipe.decoding.dflash_steps import DflashSteps
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.eagle3_steps import Eagle3Steps
from eaglepipe.decoding.strategies import ChainDrafter, ParallelDrafter, TreeDrafter
from eaglepipe.decoding.text_drafters import bigram_drafter, lookup_continuation, lookup_drafter, no_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import TargetError
from eaglepipe.target.steps.stepping import SteppingTarget
from tests.decoding.tiny_decoding import OracleDrafter, plain_greedy, tiny_block_draft, tiny_draft, tiny_stepping

GREEDY, CPU = SamplingRule(), torch.device("cpu")
PROMPTS = [np.array(ids, np.int32) for ids in ([3, 4, 5, 6], [7], [8, 9], [1, 2, 3, 1, 2], [30, 2, 9])]
TOKENS = 24


@pytest.fixture(scope="module")
def target() -> SteppingTarget:
    return tiny_stepping()


@pytest.fixture(scope="module")
def own(target: SteppingTarget) -> list[list[int]]:
    return [plain_greedy(target, prompt.tolist(), TOKENS) for prompt in PROMPTS]


def decoded(
    target: SteppingTarget, drafter: Drafter, *, batch_size: int = 1, stop_ids: frozenset[int] = frozenset()
) -> DecodedAnswers:
    return speculate(
        target,
        drafter,
        PROMPTS,
        rule=GREEDY,
        criteria=StoppingCriteria(max_new_tokens=TOKENS, stop_ids=stop_ids),
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("depth", [1, 4, 7])
@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_greedy_output_is_the_targets_own(
    target: SteppingTarget, own: list[list[int]], shape: str, depth: int, batch_size: int
) -> None:
    steps = Eagle3Steps(tiny_draft(target, 16))
    tree = TreeDrafter(steps, depth=depth, width=3, size=4 * depth)
    drafter: Drafter = ChainDrafter(steps, depth, GREEDY) if shape == "chain" else tree
    run = decoded(target, drafter, batch_size=batch_size)
    assert [list(answer.token_ids) for answer in run.answers] == own


@pytest.mark.parametrize("depth", [2, 7])
@pytest.mark.parametrize("settings", [{}, {"sample_from_anchor": True}, {"sliding_window": 4}])
def test_greedy_output_of_blocks_is_the_targets_own(
    target: SteppingTarget, own: list[list[int]], settings: dict[str, object], depth: int
) -> None:
    drafter = ParallelDrafter(DflashSteps(tiny_block_draft(target, 16, **settings)), depth, GREEDY)
    run = decoded(target, drafter, batch_size=3)
    assert [list(answer.token_ids) for answer in run.answers] == own


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("siblings", [0, 2])
def test_right_guesses_save_rounds_and_change_nothing(
    target: SteppingTarget, own: list[list[int]], siblings: int, batch_size: int
) -> None:
    drafter = OracleDrafter(target, depth=3, siblings=siblings, spoilt=0.3)
    run = decoded(target, drafter, batch_size=batch_size)
    assert [list(answer.token_ids) for answer in run.answers] == own
    rounds = np.concatenate([answer.rounds for answer in run.answers])
    assert set(rounds.tolist()) == {1, 2, 3, 4} and rounds.mean() > 2


@pytest.mark.parametrize("drafter", [no_drafter(CPU), lookup_drafter(4, CPU), bigram_drafter(np.arange(31), 4, CPU)])
def test_text_drafters_change_nothing(target: SteppingTarget, own: list[list[int]], drafter: Drafter) -> None:
    assert [list(answer.token_ids) for answer in decoded(target, drafter, batch_size=2).answers] == own


def test_an_answer_ends_with_the_first_stop_token_even_inside_a_round(
    target: SteppingTarget, own: list[list[int]]
) -> None:
    stop = own[0][5]
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in own]
    perfect = OracleDrafter(target, depth=7, siblings=0, spoilt=0.0)
    run = decoded(target, perfect, batch_size=5, stop_ids=frozenset({stop}))
    assert [list(answer.token_ids) for answer in run.answers] == expected
    assert [sum(answer.rounds) + 1 for answer in run.answers] == [len(ids) for ids in expected]


def test_sequences_beyond_the_targets_positions_are_refused(target: SteppingTarget) -> None:
    criteria = StoppingCriteria(max_new_tokens=300)
    generator = torch.Generator()
    with pytest.raises(TargetError, match="exactly up to 256"):
        speculate(target, no_drafter(CPU), PROMPTS, rule=GREEDY, criteria=criteria, batch_size=1, generator=generator)


def test_lookup_repeats_what_followed_the_latest_longest_match() -> None:
    assert lookup_continuation(np.array([1, 2, 3, 9, 2, 3, 8, 7, 2, 3]), 3).tolist() == [8, 7, 2]
    assert lookup_continuation(np.array([4, 5, 4]), 3).tolist() == [5, 4, 4]
    assert lookup_continuation(np.array([4, 5, 6]), 3).tolist() == [6, 6, 6]
