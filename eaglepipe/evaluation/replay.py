"""Decoding replayed on cached text: the engine's rounds without the target, greedy, a chain.

The cache holds what the target computed at every token and which token it would have chosen next. A round begins at the
newest token, its guesses are judged by the target's choices along the text, and the next round begins after them. On
text that is the target's own greedy answer this is what `decode.speculate` does, round for round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.types import CachedSample
from eaglepipe.decoding.decode import DecodedAnswer, DecodedAnswers
from eaglepipe.decoding.drafters import Drafter, VerifiedSlots
from eaglepipe.evaluation.prompts import Turn
from eaglepipe.training.data.batch import TrainingSource


@dataclass
class _Replayed:
    """One turn on its way: `position` is the newest token's."""

    tokens: list[int]
    choices: list[int]  # the target's next token after each, -1 where it is not known
    aux: torch.Tensor  # [T, A, Ht]
    last_hidden: torch.Tensor | None  # [T, Ht], where the cache holds every token's
    start: int
    stop: int
    position: int
    rounds: list[int]

    @property
    def ended(self) -> bool:
        return self.position >= self.stop - 1

    def advance(self, guesses: Sequence[int]) -> int:
        """Take the guesses that are the target's choices, and its own next token; returns the tokens taken."""
        before = self.position
        for guess in [*guesses, None]:
            accepted = guess is not None and guess == self.choices[self.position]
            self.position += 1
            if self.ended or not accepted:
                break
        self.rounds.append(self.position - before)
        return self.position - before


@torch.inference_mode()
def replay(
    source: TrainingSource, drafter: Drafter, turns: Sequence[Turn], *, device: torch.device, dtype: torch.dtype
) -> DecodedAnswers:
    """The rounds that each turn's text takes; `drafter` proposes greedy chains."""
    generator = torch.Generator(device)
    answers = []
    for turn in turns:
        row = _open(source, turn, device, dtype)
        drafter.begin(1)
        known = 0
        while not row.ended:
            drafter.extend(_verified(row, known))
            known = row.position
            row.advance(drafter.propose(generator).tokens[0].tolist())
        text = tuple(row.tokens[row.start : row.stop])
        answers.append(DecodedAnswer(token_ids=text, rounds=tuple(row.rounds)))
    return DecodedAnswers(answers=tuple(answers), seconds=0.0)


def own_text_share(source: TrainingSource, turns: Sequence[Turn]) -> float:
    """Share of the turns' tokens, their first ones left out, that are the target's greedy choice: 1 on its own text."""
    same = total = 0
    for turn in turns:
        sample, rows = _rows(source, turn)
        same += int((sample.input_ids[rows + 1] == sample.target_top1[rows]).sum())
        total += len(rows)
    return same / max(1, total)


def _rows(source: TrainingSource, turn: Turn) -> tuple[CachedSample, NDArray[np.int64]]:
    assert turn.sample is not None and turn.stop is not None
    return source.read(turn.sample), np.arange(len(turn.prompt), turn.stop - 1)


def _open(source: TrainingSource, turn: Turn, device: torch.device, dtype: torch.dtype) -> _Replayed:
    assert turn.sample is not None and turn.stop is not None
    sample, start = source.read(turn.sample), len(turn.prompt)
    hidden = getattr(sample, "last_hidden_payload", None)
    return _Replayed(
        tokens=sample.input_ids[: turn.stop].tolist(),
        choices=sample.target_top1[: turn.stop].tolist(),
        aux=_decoded(source.spec.decode_aux, sample.aux_payload, sample.aux_scales, turn.stop, device).to(dtype),
        last_hidden=None
        if hidden is None
        else _decoded(source.spec.rows.decode, hidden, None, turn.stop, device).to(dtype),
        start=start,
        stop=turn.stop,
        position=start,
        rounds=[],
    )


def _decoded(
    decode: Callable[[EncodedRows], torch.Tensor],
    payload: NDArray[np.uint8],
    scales: NDArray[np.floating] | None,
    stop: int,
    device: torch.device,
) -> torch.Tensor:
    """The first `stop` rows of a column, decoded on the device."""
    moved = [None if part is None else torch.from_numpy(np.array(part[:stop])).to(device) for part in (payload, scales)]
    assert moved[0] is not None
    return decode(EncodedRows(payload=moved[0], scales=moved[1]))


def _verified(row: _Replayed, known: int) -> VerifiedSlots:
    """The slots from `known` up to the newest token, which is the last slot's next token."""
    device = row.aux.device
    return VerifiedSlots(
        aux=row.aux[None, known : row.position],
        last_hidden=None if row.last_hidden is None else row.last_hidden[None, known : row.position],
        next_tokens=torch.tensor([row.tokens[known + 1 : row.position + 1]], device=device),
        counts=torch.tensor([row.position - known], device=device),
        sequences=[row.tokens[: row.position + 1]],
    )
