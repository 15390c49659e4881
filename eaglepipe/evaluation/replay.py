"""Decoding replayed on cached text: the rounds of an engine without the target, for greedy chains.

The cache holds the target's states at every token and the token that it would choose next. A round starts at the newest
token, accepts the guesses that equal the target's choices along the text, and the next round starts after them. On text
that is the target's own greedy answer this gives the rounds of `decode.speculate`, one for one.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.decoding.decode import DecodedAnswer, DecodedAnswers
from eaglepipe.decoding.drafters import Drafter, VerifiedSlots
from eaglepipe.evaluation.figures.measurement import EvalConditions, Measurement, measure
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.options import GREEDY, EvalOptions, Report
from eaglepipe.evaluation.prompts import CachedTurn
from eaglepipe.training.data.batch import TrainingSource


def measure_replayed(
    run: FinishedRun, drafters: Sequence[Drafter], turns: Sequence[CachedTurn], options: EvalOptions, report: Report
) -> list[Measurement]:
    """Replay the turns with each drafter, which must propose greedy chains, on the draft's device."""
    conditions = EvalConditions(kind="simulated", data="held-out answers", rule=GREEDY, batch_size=1)
    ids = [turn.prompt.sample_id for turn in turns]
    measurements = []
    for drafter in drafters:
        report(f"replaying {len(turns)} held-out answers: {drafter.method.label}")
        decoded = replay(run.source, drafter, turns, device=run.draft.device)
        measurements.append(measure(decoded, drafter.method, conditions, ids, seed=options.seed))
    return measurements


@torch.inference_mode()
def replay(
    source: TrainingSource, drafter: Drafter, turns: Sequence[CachedTurn], *, device: torch.device
) -> DecodedAnswers:
    """Return the turns' text with the rounds that it takes; `drafter` proposes greedy chains."""
    generator = torch.Generator(device)
    answers = []
    for turn in turns:
        row = _ReplayedTurn(source, turn, device)
        drafter.begin(1)
        while not row.ended:
            drafter.extend(row.new_slots())
            row.accept(drafter.propose(generator).tokens[0].tolist())
        answers.append(DecodedAnswer(token_ids=tuple(row.tokens[turn.start :]), rounds=tuple(row.rounds)))
    return DecodedAnswers(answers=tuple(answers), seconds=0.0)


def own_text_share(source: TrainingSource, turns: Sequence[CachedTurn]) -> float:
    """Share of the turns' tokens, except the first ones, that are the target's greedy choice: 1 on its own text."""
    matches, total = 0, 0
    for turn in turns:
        sample, rows = source.read(turn.sample), np.arange(turn.start, turn.stop - 1)
        matches += int((sample.input_ids[rows + 1] == sample.target_top1[rows]).sum())
        total += len(rows)
    return matches / max(1, total)


class _ReplayedTurn:
    """A turn as a decoding row; the newest token starts as the answer's first."""

    def __init__(self, source: TrainingSource, turn: CachedTurn, device: torch.device) -> None:
        sample, spec, stop = source.read(turn.sample), source.spec, turn.stop
        self.tokens: list[int] = sample.input_ids[:stop].tolist()
        self.rounds: list[int] = []
        self._target_choices: list[int] = sample.target_top1[:stop].tolist()  # after each token; -1 if not known
        self._aux = _decoded(spec.decode_aux, sample.aux_payload[:stop], sample.aux_scales, device)  # [T, A, Ht]
        self._last_hidden = None  # [T, Ht]
        if sample.last_hidden_payload is not None:
            self._last_hidden = _decoded(spec.rows.decode, sample.last_hidden_payload[:stop], None, device)
        self._newest, self._num_slots, self._device = turn.start, 0, device

    @property
    def ended(self) -> bool:
        return self._newest >= len(self.tokens) - 1

    def new_slots(self) -> VerifiedSlots:
        """Return the slots since the last call; the newest token is the last slot's next token."""
        first, end = self._num_slots, self._newest
        self._num_slots = end
        return VerifiedSlots(
            aux=self._aux[None, first:end],
            last_hidden=None if self._last_hidden is None else self._last_hidden[None, first:end],
            next_tokens=torch.tensor([self.tokens[first + 1 : end + 1]], device=self._device),
            counts=torch.tensor([end - first], device=self._device),
            sequences=[self.tokens[: end + 1]],
        )

    def accept(self, guesses: Sequence[int]) -> None:
        """Make a round: take the guesses that equal the target's choices, and one more token of the text."""
        pairs = zip(guesses, self._target_choices[self._newest :], strict=False)
        num_accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        added = min(num_accepted + 1, len(self.tokens) - 1 - self._newest)
        self.rounds.append(added)
        self._newest += added


def _decoded(
    decode: Callable[[EncodedRows], torch.Tensor],
    payload: NDArray[np.uint8],
    scales: NDArray[np.floating] | None,
    device: torch.device,
) -> torch.Tensor:
    """Decode rows of a column on the device, to float32."""
    moved = torch.from_numpy(np.array(payload)).to(device)
    moved_scales = None if scales is None else torch.from_numpy(np.array(scales[: len(payload)])).to(device)
    return decode(EncodedRows(payload=moved, scales=moved_scales)).float()
