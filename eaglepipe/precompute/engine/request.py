"""What a request tells the connector about the sample that its states belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from eaglepipe.chat.tokens import TokenSample
from eaglepipe.vllm_engine.messages import stops_at

_KEY = "eaglepipe"


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The place of a sample in its shard, and all of it but the token ids, which the engine has."""

    shard: int
    place: int
    num_places: int  # samples of the shard
    sample_id: str
    source: str
    turns: tuple[tuple[int, int], ...]  # of the prompt: the number of a turn and how many tokens it has, one by one
    output_turn: int | None = None  # the turn of tokens that the engine generates; None: they are left out
    stop_token_ids: tuple[int, ...] = ()  # of which the first ends that turn

    @property
    def key(self) -> str:
        """The name under which the sample of an answer is held until it is known what becomes of it."""
        return self.sample_id

    @classmethod
    def of(cls, sample: TokenSample, *, shard: int, place: int, num_places: int) -> "SampleRequest":
        """Describe a sample whose tokens are all in the prompt."""
        return cls(
            shard=shard,
            place=place,
            num_places=num_places,
            sample_id=sample.sample_id,
            source=sample.source,
            turns=run_lengths(sample.turns.tolist()),
        )

    def sample(self, token_ids: Sequence[int]) -> TokenSample:
        """Return the sample whose states the engine has: the prompt's tokens, and those after them."""
        numbers, lengths = zip(*self.turns, strict=True)
        turns = np.repeat(np.array(numbers, np.int32), lengths)
        generated = np.full(len(token_ids) - len(turns), self.output_turn or 0, np.int32)
        return TokenSample(
            sample_id=self.sample_id,
            source=self.source,
            input_ids=np.array(token_ids, np.int32),
            turns=np.concatenate([turns, generated]),
        )

    def to_params(self) -> dict[str, Any]:
        """Return the request's `kv_transfer_params`."""
        runs = [list(run) for run in self.turns]
        return {_KEY: {**vars(self), "turns": runs, "stop_token_ids": list(self.stop_token_ids)}}

    @classmethod
    def from_params(cls, params: Mapping[str, Any] | None) -> "SampleRequest | None":
        """Return what `to_params` gave; None for a request that asks for no states."""
        fields = (params or {}).get(_KEY)
        if fields is None:
            return None
        turns = tuple((int(turn), int(length)) for turn, length in fields["turns"])
        return cls(**{**fields, "turns": turns, "stop_token_ids": tuple(fields["stop_token_ids"])})

    def read_tokens(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Return the tokens that have states: of the answer, those up to its end, but not the last one sampled."""
        if self.output_turn is None:
            return list(prompt)
        read = list(answer[:-1])
        end = stops_at(read, self.stop_token_ids)
        return [*prompt, *(read if end is None else read[: end + 1])]


def run_lengths(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return each run of equal values as (value, length)."""
    return tuple((value, sum(1 for _ in run)) for value, run in groupby(values))
