"""The target itself as the one who answers, by transformers: batches of prompts of like length."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.generation.answering import Answer, Prompt, Sampling
from eaglepipe.generation.generate import generate
from eaglepipe.target.load import LoadedTarget


class TargetAnswerer:
    """A loaded target; the same prompts between two rounds of answers always give the same answers."""

    def __init__(
        self,
        target: LoadedTarget,
        sampling: Sampling,
        stop_ids: frozenset[int],
        *,
        batch_size: int,
        own_draws: bool = False,
    ) -> None:
        """Keep the settings of all answers.

        Args:
            own_draws: draw each answer by its prompt's own purpose, whatever is answered beside it.
        """
        self._target, self._sampling, self._stop_ids = target, sampling, stop_ids
        self._batch_size, self._own_draws = batch_size, own_draws
        self._waiting: list[tuple[int, Prompt]] = []

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Put a prompt into the next round."""
        self._waiting.append((request_id, prompt))

    def answered(self) -> Iterator[tuple[int, Answer]]:
        """Answer all that waits, then all that was added meanwhile, and so on."""
        while self._waiting:
            one_round = sorted(self._waiting, key=lambda entry: (len(entry[1].token_ids), entry[0]))
            self._waiting = []
            for start in range(0, len(one_round), self._batch_size):
                batch = one_round[start : start + self._batch_size]
                prompts = [prompt.token_ids for _, prompt in batch]
                draws = (
                    np.stack([self._numbers(prompt) for _, prompt in batch])
                    if self._own_draws
                    else _generator(self._target.device, *batch[0][1].purpose, start)
                )
                answers = generate(self._target, prompts, self._sampling, self._stop_ids, draws)
                yield from zip((request_id for request_id, _ in batch), answers, strict=True)

    def _numbers(self, prompt: Prompt) -> NDArray[np.float64]:
        """Return the numbers that choose an answer's tokens."""
        return np.random.default_rng(np.random.SeedSequence(prompt.purpose)).random(self._sampling.max_new_tokens)


def _generator(device: torch.device, *purpose: int) -> torch.Generator:
    """Return a generator of its own for each purpose, given as numbers."""
    state = int(np.random.SeedSequence(purpose).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state)
