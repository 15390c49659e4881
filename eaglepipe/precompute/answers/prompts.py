"""Conversations whose user turns the target is to answer, staged with the prompt of the first answer.

An assistant turn of a source gives its place to the target's own; a user turn that none follows gets one.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.messages import Message
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer, TokenIds
from eaglepipe.errors import ConfigError, TemplateError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedPrompt

_PROMPT_CHARACTERS = 2**21  # a token needs hundreds of bytes while a text is tokenised
_TOKENS_OF_A_HEADER = 8  # that a template writes around a message; of an estimate


def answer_positions(inputs: Stage1Inputs) -> int:
    """Return how many tokens prompt and answer may have together; no token after data.max_length is kept."""
    data, settings = inputs.recipe.data, inputs.recipe.data.generate
    assert settings is not None
    own, engine = inputs.max_positions, inputs.recipe.target.engine_args.get("max_model_len")
    limits = [limit for limit in (own, engine) if isinstance(limit, int) and not isinstance(limit, bool)]
    return min([data.max_length + settings.max_new_tokens, *limits])


def iter_prompts(
    rows: Iterable[Conversation | FaultyRow], inputs: Stage1Inputs, drops: DropLog
) -> Iterator[StagedPrompt]:
    """Yield the prompts of each row, one for each of its `data.generate.n` answers; rows that have none go to `drops`.

    Raises:
        ConfigError: no prompt can leave room for an answer.
    """
    settings, limit = inputs.recipe.data.generate, answer_positions(inputs)
    assert settings is not None
    if settings.max_new_tokens >= limit:
        raise ConfigError(
            f"data.generate.max_new_tokens is {settings.max_new_tokens:,}, and the target reads {limit:,} tokens at "
            "once, prompt included: lower it"
        )
    for row in rows:
        staged = _staged(row, inputs, limit)
        if isinstance(staged, tuple):
            drops.add(staged[0], where=row.where, source=row.source, detail=staged[1])
            continue
        for number in range(1, settings.n + 1):
            fields = {**staged.fields, "id": staged.sample_id, "number": number}
            yield replace(staged, sample_id=numbered_id(staged.sample_id, number), conversation=_json(fields))


def numbered_id(sample_id: str, number: int) -> str:
    """Return the id of one of several samples of a conversation, all of which are held out together."""
    return sample_id if number == 1 else f"{sample_id}#{number}"


def staged_conversation(prompt: StagedPrompt) -> Conversation:
    """Return the conversation of a staged prompt."""
    fields = prompt.fields
    return Conversation(
        sample_id=prompt.sample_id,
        source=prompt.source,
        where=prompt.sample_id,
        digest=b"",
        messages=tuple(fields["messages"]),
        tools=None if fields["tools"] is None else tuple(fields["tools"]),
        context=frozenset(fields["context"]),
    )


def _staged(row: Conversation | FaultyRow, inputs: Stage1Inputs, limit: int) -> StagedPrompt | tuple[str, str]:
    """Return the prompt of a row, or the reason that there is none and its details."""
    if isinstance(row, FaultyRow):
        return row.reason, row.detail
    if row.messages is None:
        return "already_tokenised", "token ids hold no prompt that the target could answer; leave data.generate out"
    messages, context = _with_places(row.messages, row.context)
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i not in context]
    if not places:
        return "no_user_turn", "no user message asks for an answer"
    chat, data, settings = inputs.chat, inputs.recipe.data, inputs.recipe.data.generate
    assert chat is not None and settings is not None
    try:
        text = chat.template.render(messages[: places[0]], row.tools, prompt=True)
    except TemplateError as error:
        return "template_refuses", str(error)
    input_ids = chat.token_ids(text[:_PROMPT_CHARACTERS])
    if (drop := _drop(text, input_ids, inputs, limit)) is not None:
        return drop
    between = (message for index, message in enumerate(messages[: places[-1]]) if index > places[0])
    written = len(places) * settings.max_new_tokens
    follow = min(written + sum(_text_tokens(chat, message) for message in between), data.max_length - len(input_ids))
    fields = {"messages": messages, "tools": row.tools, "context": sorted(context), "follow": follow, "answer": written}
    return StagedPrompt(
        sample_id=row.sample_id,
        source=row.source,
        input_ids=input_ids,
        turns=np.zeros(len(input_ids), dtype=np.int32),
        conversation=_json(fields),
    )


def _drop(text: str, input_ids: TokenIds, inputs: Stage1Inputs, limit: int) -> tuple[str, str] | None:
    """Return why a prompt cannot be answered, as a reason and its details."""
    data, settings = inputs.recipe.data, inputs.recipe.data.generate
    assert settings is not None
    longest, by = data.max_length - 2, f"data.max_length {data.max_length:,}"  # the least answer: a token and an end
    if limit - settings.max_new_tokens < longest:
        longest, by = limit - settings.max_new_tokens, f"max_new_tokens of the target's {limit:,} positions"
    if len(text) > _PROMPT_CHARACTERS or len(input_ids) > longest:
        return "too_long", f"at least {len(input_ids):,} tokens in its prompt, and {by} leaves room for {longest:,}"
    if len(input_ids) == 0:
        return "too_short", "the chat template renders an empty prompt"
    if (wrong := int(input_ids.max())) >= inputs.spec.vocab_size:
        return "token_out_of_range", f"token id {wrong} is outside the target's vocabulary of {inputs.spec.vocab_size}"
    return None


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _with_places(messages: Sequence[Message], context: frozenset[int]) -> tuple[list[Message], frozenset[int]]:
    """Return the messages with an assistant's after every user's, and the indices of the context among them."""
    placed: list[Message] = []
    kept: set[int] = set()
    for index, message in enumerate(messages):
        if index in context:
            kept.add(len(placed))
        placed.append(message)
        following = messages[index + 1]["role"] if index + 1 < len(messages) else None
        if message["role"] == "user" and following != "assistant":
            placed.append({"role": "assistant", "content": ""})
    return placed, frozenset(kept)


def _text_tokens(chat: ChatTokenizer, message: Message) -> int:
    """Estimate the tokens of a message that stands between two answers."""
    if message["role"] == "assistant":
        return 0
    return _TOKENS_OF_A_HEADER + len(chat.token_ids(str(message.get("content") or "")[:_PROMPT_CHARACTERS]))
