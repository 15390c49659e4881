"""What a synthesized user's turn must be to be kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from eaglepipe.chat.tokenizer import ChatTokenizer, decode_after
from eaglepipe.generation.answering import Answer, Unanswered
from eaglepipe.generation.synthesis.user_turn import UserTurn

_GRAM = 4  # tokens


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits of a turn's length in tokens and of its repetition, which is a share of its token 4-grams."""

    chat: ChatTokenizer
    special_ids: frozenset[int]  # that no user writes
    min_tokens: int
    max_tokens: int
    max_repetition: float

    def judge(self, turn: UserTurn, answer: Answer) -> str | Unanswered:
        """Return the user's words, or the reason for which they are left out."""
        if answer.unanswered is not None:
            return answer.unanswered
        if not answer.finite:
            return Unanswered(status="error", reason="the target gave NaN or Inf")
        ids = answer.token_ids.tolist()
        body = ids[:-1] if answer.ended else ids
        text, found_end = turn.words(decode_after(self.chat.tokenizer, turn.token_ids.tolist(), body))
        written = [] if found_end else body  # after the end stands what the target would answer
        fault = self._fault(text, written, ended=answer.ended or found_end)
        return text if fault is None else Unanswered(status="skipped", reason=fault, detail=text)

    def _fault(self, text: str, body: Sequence[int], *, ended: bool) -> str | None:
        ids = self.chat.token_ids(text).tolist()
        faults = {
            "unfinished after max_new_tokens": not ended,
            "empty": not text,
            "special tokens inside": not self.special_ids.isdisjoint([*ids, *body]),
            "not valid text": "\N{REPLACEMENT CHARACTER}" in text,
            "shorter than min_tokens": len(ids) < self.min_tokens,
            "longer than max_tokens": len(ids) > self.max_tokens,
            "repeats itself": repetition(ids) > self.max_repetition,
        }
        return next((fault for fault, holds in faults.items() if holds), None)


def repetition(ids: Sequence[int]) -> float:
    """Return the share of token 4-grams that occurred before, 0 to 1."""
    grams = [tuple(ids[start : start + _GRAM]) for start in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
