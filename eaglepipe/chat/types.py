"""The values that pass through `chat`: a conversation as read, and the same as token ids with numbered assistant turns.

`supervised_tokens` alone decides which tokens are supervised.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One row of a source, checked: either `messages`, or `input_ids` with `turns` when it came tokenised."""

    sample_id: str
    source: str
    where: str  # "file:line" or the like, for messages to the user
    digest: bytes  # [16] xxh3_128 of the content, metadata columns left out
    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    num_context: int = 0  # leading messages that are a prompt: their assistant turns are never supervised
    input_ids: NDArray[np.int32] | None = None  # [T]
    turns: NDArray[np.int32] | None = None  # [T]

    @property
    def has_assistant_turn(self) -> bool:
        """Whether an assistant message may be supervised; for tokenised rows, their mask decides later."""
        if self.messages is None:
            return True
        return any(message["role"] == "assistant" for message in self.messages[self.num_context :])


@dataclass(frozen=True, kw_only=True)
class TokenSample:
    """One conversation as the target reads it; T tokens."""

    sample_id: str
    source: str
    input_ids: NDArray[np.int32]  # [T]
    turns: NDArray[np.int32]  # [T] 0: not the assistant's; n: its n-th turn


class DropCounts(Counter[str]):
    """Samples left out, counted by reason."""


def supervised_tokens(turns: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the mask [T] of tokens that belong to the same assistant turn as the next token."""
    supervised = np.zeros(len(turns), dtype=np.bool_)
    supervised[:-1] = (turns[:-1] > 0) & (turns[:-1] == turns[1:])
    return supervised
