"""Conversations to token samples: tokenised in batches, cut to length, samples left out counted by reason.

`supervised_tokens` alone decides which tokens are supervised.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer, TokenIds
from eaglepipe.errors import DataError, TemplateError, printable
from eaglepipe.recipe.config import DataConfig

NO_ASSISTANT_TURN = "no_assistant_turn"
NOT_TRAINED_ON = "not_trained_on"  # the row itself leaves every assistant turn out
TEMPLATE_REFUSES = "template_refuses"
TOO_SHORT = "too_short"
TOO_LONG = "too_long"
EMPTY_MASK = "empty_mask"

_BATCH_CONVERSATIONS = 64


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


def iter_token_samples(
    rows: Iterable[Conversation | FaultyRow], chat: ChatTokenizer | None, data: DataConfig, drops: DropCounts
) -> Iterator[TokenSample]:
    """Yield a sample for each row with a supervised token, in order; the others are counted in `drops`.

    `chat` may be None when every row comes tokenised. A sample keeps its first `data.max_length` tokens.

    Raises:
        DataError: a row of messages without `chat`, or token ids of another tokenizer.
    """
    rest = iter(rows)
    fingerprint = cache(chat.fingerprint) if chat is not None else None
    while batch := list(islice(rest, _BATCH_CONVERSATIONS)):
        drops.update(row.reason for row in batch if isinstance(row, FaultyRow))
        conversations = [row for row in batch if isinstance(row, Conversation)]
        answered = [conversation for conversation in conversations if conversation.has_assistant_turn]
        drops.update(_reason_without_turn(row) for row in conversations if not row.has_assistant_turn)
        for conversation in answered:
            _check_tokenizer(conversation, fingerprint)
        for conversation, encoded in zip(answered, _encoded(answered, chat), strict=True):
            if isinstance(encoded, TemplateError):
                drops[TEMPLATE_REFUSES] += 1
                continue
            input_ids, all_turns = encoded
            turns = _supervised_turns(all_turns, data)
            if (reason := _drop_reason(input_ids, turns, data)) is not None:
                drops[reason] += 1
                continue
            yield TokenSample(
                sample_id=conversation.sample_id,
                source=conversation.source,
                input_ids=input_ids[: data.max_length],
                turns=turns[: data.max_length],
            )


def _encoded(
    conversations: Sequence[Conversation], chat: ChatTokenizer | None
) -> Iterator[tuple[TokenIds, TokenIds] | TemplateError]:
    to_render = [conversation for conversation in conversations if conversation.messages is not None]
    if to_render and chat is None:
        raise DataError(f"{to_render[0].where}: a row of messages, and there is no tokenizer to render it with")
    rendered = iter(chat.encode_batch(to_render) if chat is not None and to_render else [])
    for conversation in conversations:
        if conversation.input_ids is not None and conversation.turns is not None:
            yield conversation.input_ids, conversation.turns
        else:
            yield next(rendered)


def _check_tokenizer(conversation: Conversation, fingerprint: Callable[[], str] | None) -> None:
    if conversation.tokenizer is None or (fingerprint is not None and conversation.tokenizer == fingerprint()):
        return
    own = "which the target's folder lacks" if fingerprint is None else f"the target's is {fingerprint()}"
    raise DataError(
        f"{conversation.where}: source {conversation.source!r} holds token ids of tokenizer "
        f"{printable(conversation.tokenizer[:64])}, {own}. Run `eaglepipe data regenerate` with this target, or "
        "remove the rows' `input_ids`, `loss_mask` and `tokenizer` to have their messages rendered"
    )


def _reason_without_turn(conversation: Conversation) -> str:
    asked = any(message["role"] == "assistant" for message in conversation.messages or ())
    return NOT_TRAINED_ON if asked else NO_ASSISTANT_TURN


def _supervised_turns(turns: TokenIds, data: DataConfig) -> TokenIds:
    if data.supervise == "all" or not len(turns):
        return turns
    return np.where(turns == turns.max(), turns, 0).astype(np.int32)


def _drop_reason(input_ids: TokenIds, turns: TokenIds, data: DataConfig) -> str | None:
    if len(input_ids) < 2:
        return TOO_SHORT
    if len(input_ids) > data.max_length and data.on_long == "drop":
        return TOO_LONG
    if not supervised_tokens(turns[: data.max_length]).any():
        return EMPTY_MASK
    return None
