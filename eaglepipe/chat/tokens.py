"""Conversations to token samples: tokenised in batches, cut to length; rows left out go to a log, with their reason.

`supervised_tokens` alone decides which tokens are supervised.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.limited_rendering import json_characters
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer, TokenIds
from eaglepipe.errors import DataError, TemplateError, printable
from eaglepipe.recipe.config import DataConfig

_BATCH_CONVERSATIONS = 64
_BATCH_CHARACTERS = 2**22


@dataclass(frozen=True, kw_only=True)
class TokenSample:
    """One conversation as the target reads it; T tokens."""

    sample_id: str
    source: str
    input_ids: NDArray[np.int32]  # [T]
    turns: NDArray[np.int32]  # [T] 0: not the assistant's; n: its n-th turn


def supervised_tokens(turns: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the mask [T] of tokens that belong to the same assistant turn as the next token."""
    supervised = np.zeros(len(turns), dtype=np.bool_)
    supervised[:-1] = (turns[:-1] > 0) & (turns[:-1] == turns[1:])
    return supervised


def iter_token_samples(
    rows: Iterable[Conversation | FaultyRow],
    chat: ChatTokenizer | None,
    data: DataConfig,
    drops: DropLog,
    vocab_size: int | None = None,
) -> Iterator[TokenSample]:
    """Yield a sample for each row with a supervised token, in order; the others go to `drops`.

    `chat` may be None when every row comes tokenised. A sample keeps its first `data.max_length` tokens.

    Raises:
        DataError: a row of messages without `chat`, or token ids of another tokenizer.
    """
    fingerprint = cache(chat.fingerprint) if chat is not None else None
    for batch in _batches(rows):
        answered = [row for row in batch if isinstance(row, Conversation) and row.has_assistant_turn]
        for conversation in answered:
            _check_tokenizer(conversation, fingerprint)
        encoded = _encoded(answered, chat, data.max_length)
        for row in batch:
            sample = _sample(row, encoded, data, vocab_size)
            if isinstance(sample, TokenSample):
                yield sample
            else:
                drops.add(sample[0], where=row.where, source=row.source, detail=sample[1])


def _batches(rows: Iterable[Conversation | FaultyRow]) -> Iterator[list[Conversation | FaultyRow]]:
    """Yield rows to be tokenised together, which takes many times the memory of their text."""
    batch: list[Conversation | FaultyRow] = []
    characters = 0
    for row in rows:
        size = json_characters(row.messages) if isinstance(row, Conversation) and row.messages is not None else 0
        if batch and (len(batch) == _BATCH_CONVERSATIONS or characters + size > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += size
    if batch:
        yield batch


def _sample(
    row: Conversation | FaultyRow,
    encoded: Iterator[tuple[TokenIds, TokenIds] | TemplateError],
    data: DataConfig,
    vocab_size: int | None,
) -> TokenSample | tuple[str, str]:
    """Return a row's sample, or the reason that there is none and its details."""
    if isinstance(row, FaultyRow):
        return row.reason, row.detail
    if not row.has_assistant_turn:
        if any(message["role"] == "assistant" for message in (row.messages or ())[1:]):
            return "not_trained_on", "the row leaves every assistant message out"
        return "no_assistant_turn", "no assistant message answers anything"
    result = next(encoded)
    if isinstance(result, TemplateError):
        return "template_refuses", str(result)
    input_ids, turns = result
    whole = TokenSample(sample_id=row.sample_id, source=row.source, input_ids=input_ids, turns=turns)
    return cut_sample(whole, data, vocab_size)


def cut_sample(whole: TokenSample, data: DataConfig, vocab_size: int | None) -> TokenSample | tuple[str, str]:
    """Return what the settings of `data` keep of a sample, or why nothing is left, with details."""
    turns, limit = _supervised_turns(whole.turns, data), data.max_length
    if (drop := _drop(whole.input_ids, turns, data, vocab_size)) is not None:
        return drop
    return replace(whole, input_ids=whole.input_ids[:limit], turns=turns[:limit])


def _encoded(
    conversations: Sequence[Conversation], chat: ChatTokenizer | None, limit: int
) -> Iterator[tuple[TokenIds, TokenIds] | TemplateError]:
    to_render = [conversation for conversation in conversations if conversation.messages is not None]
    if to_render and chat is None:
        raise DataError(f"{to_render[0].where}: a row of messages, and there is no tokenizer to render it with")
    rendered = iter(chat.encode_batch(to_render, limit) if chat is not None and to_render else [])
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


def _supervised_turns(turns: TokenIds, data: DataConfig) -> TokenIds:
    if data.supervise == "all" or not len(turns):
        return turns
    return np.where(turns == turns.max(), turns, 0).astype(np.int32)


def _drop(input_ids: TokenIds, turns: TokenIds, data: DataConfig, vocab_size: int | None) -> tuple[str, str] | None:
    """Return why a tokenised row is left out, as a reason and its details."""
    num_tokens, kept = len(input_ids), input_ids[: data.max_length]
    if num_tokens < 2:
        return "too_short", f"{num_tokens} tokens, and a sample has at least two"
    if num_tokens > data.max_length and data.on_long == "drop":
        return "too_long", f"at least {num_tokens:,} tokens, and data.max_length is {data.max_length:,}"
    if not supervised_tokens(turns[: data.max_length]).any():
        cut = f"first {data.max_length:,} tokens" if num_tokens > data.max_length else "tokens"
        return "empty_mask", f"none of the {cut} is supervised"
    if vocab_size is not None and (kept.min() < 0 or kept.max() >= vocab_size):
        wrong = int(kept.max() if kept.max() >= vocab_size else kept.min())
        return "token_out_of_range", f"token id {wrong} is outside the target's vocabulary of {vocab_size}"
    return None
