"""From a tokenizer and the recipe's `data` section to a `ChatTokenizer` whose template has passed the probes.

Three probes run on small conversations, before any forward of the target: the mask is not empty and holds the
assistant's words; renderings preserve their prefixes, as text and as tokens; the token that ends a turn is masked.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from eaglepipe.chat.messages import Message
from eaglepipe.chat.render import GENERATION_MARKER, ChatTemplate, Span, assistant_positions, pinned_dates
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer, TokenIds, read_template
from eaglepipe.errors import TemplateError
from eaglepipe.recipe.config import DataConfig

_SYSTEM: Message = {"role": "system", "content": "Answer in short sentences."}
_FIRST: tuple[Message, ...] = (
    {"role": "user", "content": "Which tree stands by the river?"},
    {"role": "assistant", "content": "An old willow stands there."},
)
_SECOND: tuple[Message, ...] = (
    {"role": "user", "content": "And on the hill?"},
    {"role": "assistant", "content": "Two tall pines grow there."},
)


def load_chat_tokenizer(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> ChatTokenizer:
    """Join the tokenizer with the template that `data` names, probed; sources that are all tokenised need none.

    A template that fails a probe is kept with its problem: rows of token ids, and prompts, need no mask of a rendering.

    Raises:
        TemplateError: there is no template, or `data.mask` asks for markers that it lacks.
        DataError: the file of data.chat_template cannot be read.
    """
    if all(source.format == "tokenized" for source in data.sources):
        return ChatTokenizer(tokenizer=tokenizer, template=ChatTemplate(source="", variables={}, mask="prefix"))
    source = pinned_dates(read_template(tokenizer, data.chat_template))
    template = ChatTemplate(
        source=source,
        variables={**tokenizer.special_tokens_map, **data.chat_template_kwargs},
        mask=_mask_of(source, data),
        last_only=data.supervise == "last",
    )
    chat = ChatTokenizer(tokenizer=tokenizer, template=template)
    try:
        ends = probe_template(chat)
    except TemplateError as problem:
        eos = tokenizer.eos_token_id
        known = frozenset() if eos is None else frozenset({eos})
        return replace(chat, problem=problem, end_of_turn=eos, ends_of_turn=known)
    return replace(chat, end_of_turn=ends[0], ends_of_turn=frozenset(ends))


def _mask_of(source: str, data: DataConfig) -> Literal["generation", "prefix"]:
    marked = bool(GENERATION_MARKER.search(source))
    if data.mask == "generation" and not marked:
        raise TemplateError("data.mask is `generation`, and the chat template has no {% generation %} block")
    if data.mask == "auto":
        return "generation" if marked else "prefix"
    return data.mask


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """One small conversation, rendered, tokenised and masked."""

    messages: tuple[Message, ...]
    text: str
    spans: tuple[Span, ...]
    ids: TokenIds  # [T]
    turns: TokenIds  # [T]


def probe_template(chat: ChatTokenizer) -> tuple[int, ...]:
    """Check one turn, two turns, and two turns after a system message if the template takes one.

    Returns:
        The ids that end an assistant turn, first the one that ends the last turn of a conversation.

    Raises:
        TemplateError: names the probe that failed, the turn, and the change to make.
    """
    ends = _probe(chat, _FIRST) + _probe(chat, _FIRST + _SECOND)
    with_system = (_SYSTEM, *_FIRST, *_SECOND)
    try:
        chat.template.render(with_system)
    except TemplateError:
        pass
    else:
        ends += _probe(chat, with_system)
    return tuple(dict.fromkeys(ends))


def _probe(chat: ChatTokenizer, messages: tuple[Message, ...]) -> list[int]:
    ids, turns = chat.encode(
        Conversation(sample_id="probe", source="probe", where="template probe", digest=b"", messages=messages)
    )
    probe = _Probe(messages=messages, ids=ids, turns=turns, **vars(chat.template.spans(messages)))
    last = len(assistant_positions(messages))
    return [_check_turn(chat, probe, turn) for turn in ([last] if chat.template.last_only else range(1, last + 1))]


def _check_turn(chat: ChatTokenizer, probe: _Probe, turn: int) -> int:
    """Run the probes on one turn; returns the id that ends it."""
    if not (probe.turns == turn).any():
        raise TemplateError(f"the assistant mask of turn {turn} is empty in a small conversation: {probe.text!r}")
    prompt_end, turn_end = chat.template.around_turn(probe.messages, None, turn, probe.text)
    words_end = _check_words(probe, turn, prompt_end, turn_end)
    _check_prompt(chat, probe, turn, prompt_end)
    return _check_end(chat, probe, turn, (words_end, turn_end))


def _check_words(probe: _Probe, turn: int, prompt_end: int, turn_end: int) -> int:
    """Return the end of the assistant's words, which must lie in the turn's mask."""
    content = probe.messages[assistant_positions(probe.messages)[turn - 1]]["content"]
    masked = [(span.start, span.end) for span in probe.spans if span.turn == turn]
    start = probe.text.find(content, prompt_end, turn_end)
    end = start + len(content)
    if not any(first <= start and end <= stop for first, stop in masked):
        raise TemplateError(
            f"the mask of assistant turn {turn} does not hold the assistant's words, {content!r}; it covers "
            f"{[probe.text[first:stop] for first, stop in masked]}. Put the message's content inside the generation "
            "block, outside any macro or set block"
        )
    return end


def _check_prompt(chat: ChatTokenizer, probe: _Probe, turn: int, prompt_end: int) -> None:
    start = min(span.start for span in probe.spans if span.turn == turn)
    if start < prompt_end:
        raise TemplateError(
            f"the mask of assistant turn {turn} begins with {probe.text[start:prompt_end]!r}, which belongs to the "
            "generation prompt: open the generation block after the assistant's header"
        )
    prompt = probe.text[:prompt_end]
    prompt_ids = chat.token_ids(prompt)
    if not np.array_equal(prompt_ids, probe.ids[: len(prompt_ids)]):
        raise TemplateError(
            f"the tokenizer merges the end of the generation prompt, {prompt[-16:]!r}, "
            f"with the first characters of assistant turn {turn}: the target would read other tokens here than when it "
            "generates. End the prompt where a token ends"
        )


def _check_end(chat: ChatTokenizer, probe: _Probe, turn: int, tail: tuple[int, int]) -> int:
    """Return the first special token that the template writes after the assistant's words."""
    first, stop = (len(chat.token_ids(probe.text[:end])) for end in tail)
    special = set(chat.tokenizer.all_special_ids) | set(chat.tokenizer.added_tokens_decoder)
    ends = [index for index in range(first, stop) if int(probe.ids[index]) in special]
    if not ends:
        raise TemplateError(
            f"assistant turn {turn} ends with {probe.text[slice(*tail)]!r}, which holds no special token: the end of "
            "the turn is not marked. Use a template that writes an end-of-turn token after the assistant's content"
        )
    end = int(probe.ids[ends[0]])
    if probe.turns[ends[0]] != turn:
        raise TemplateError(
            f"the token that ends assistant turn {turn}, {chat.tokenizer.convert_ids_to_tokens(end)!r}, is outside the "
            "mask, so the draft would never learn to stop: close the generation block after it"
        )
    return end
