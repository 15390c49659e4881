"""From a tokenizer and the recipe's `data` section to a `ChatTokenizer` whose template has passed the probes.

Three probes run on small conversations, before any forward of the target: the mask is not empty and holds the
assistant's words; renderings preserve their prefixes, as text and as tokens; the token that ends a turn is masked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from eaglepipe.chat.messages import Message
from eaglepipe.chat.render import GENERATION_MARKER, ChatTemplate, Span, assistant_positions, pinned_dates
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.thoughts import TAG
from eaglepipe.chat.tokenizer import ChatTokenizer, TokenIds
from eaglepipe.chat.tokenizer_files import read_templates
from eaglepipe.errors import TemplateError
from eaglepipe.recipe.config import DataConfig

Messages = tuple[Message, ...]

_FAULTS_OF_ANY_ROW = (jinja2.TemplateSyntaxError, SyntaxError, RecursionError)
_RENDERINGS = 4  # of the same conversation, which must be equal
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
    if all(source.is_tokenized for source in data.sources):
        return ChatTokenizer(tokenizer=tokenizer, template=ChatTemplate(source="", variables={}, mask="prefix"))
    default, with_tools = read_templates(tokenizer, data.chat_template)
    variables = {**tokenizer.special_tokens_map, **data.chat_template_kwargs}
    template = _template(default, variables, data)
    chat = _probed(ChatTokenizer(tokenizer=tokenizer, template=template))
    if with_tools is None:
        return chat
    tool_chat = _probed(ChatTokenizer(tokenizer=tokenizer, template=_template(with_tools, variables, data)))
    return replace(
        chat,
        template=replace(chat.template, with_tools=tool_chat.template),
        ends_of_turn=chat.ends_of_turn | tool_chat.ends_of_turn,
        tool_problem=tool_chat.problem,
    )


def _template(source: str, variables: Mapping[str, Any], data: DataConfig) -> ChatTemplate:
    pinned = pinned_dates(source)
    return ChatTemplate(
        source=pinned, variables=variables, mask=_mask_of(pinned, data), last_only=data.supervise == "last"
    )


def _probed(chat: ChatTokenizer) -> ChatTokenizer:
    """Return the tokenizer with the ends of turns that the probes find, or with the problem that they meet."""
    cut = replace(chat, template=replace(chat.template, cut_at_prompt=True))
    problem: TemplateError | None = None
    for candidate in (chat, cut) if chat.template.mask == "generation" else (chat,):
        try:
            ends = probe_template(candidate)
        except TemplateError as error:
            problem = problem or error
        else:
            return replace(candidate, **_ends(chat, ends))
    last_only = replace(chat, template=replace(chat.template, last_only=True))
    try:
        ends = probe_template(last_only)
    except TemplateError:
        ends = ()
    return replace(chat, problem=problem, **_ends(chat, ends))


def _ends(chat: ChatTokenizer, ends: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of the ends of turns; the tokenizer's own end stands for those that no probe shows."""
    own = chat.tokenizer.eos_token_id
    ends = ends or (() if own is None else (own,))
    return {"end_of_turn": ends[0] if ends else None, "ends_of_turn": frozenset(ends)}


def _mask_of(source: str, data: DataConfig) -> Literal["generation", "prefix"]:
    marked = bool(GENERATION_MARKER.search(source))
    if data.mask == "generation" and not marked:
        raise TemplateError("data.mask is `generation`, and the chat template has no {% generation %} block")
    if data.mask in ("generation", "prefix"):
        return data.mask
    return "generation" if marked else "prefix"


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
    try:
        return _probe_all(chat, _FIRST, _SECOND)
    except TemplateError as error:
        if not _renders(chat, _FIRST) or not TAG.search(chat.template.render(_FIRST[:1], prompt=True)):
            raise
        try:
            return _probe_all(chat, *(tuple(map(_thoughtful, part)) for part in (_FIRST, _SECOND)))
        except TemplateError:
            raise error from None


def _probe_all(chat: ChatTokenizer, first: Messages, second: Messages) -> tuple[int, ...]:
    """Probe the conversations that the template renders; one that it refuses is left to the checks of each row."""
    conversations = [before + messages for before in ((), (_SYSTEM,)) for messages in (first, first + second)]
    rendered = [messages for messages in conversations if _renders(chat, messages)]
    return tuple(dict.fromkeys(end for messages in rendered for end in _probe(chat, messages)))


def _renders(chat: ChatTokenizer, messages: Messages) -> bool:
    try:
        texts = {chat.template.render(messages) for _ in range(_RENDERINGS)}
    except TemplateError as error:
        if isinstance(error.__cause__, _FAULTS_OF_ANY_ROW):
            raise
        return False
    if len(texts) > 1:
        raise TemplateError(
            "the chat template renders one conversation in several ways (by `random`, for example), so the same rows "
            "would give other tokens each time; give data.chat_template one that does not"
        )
    return True


def _thoughtful(message: Message) -> Message:
    thought = {"reasoning_content": "I remember it well."} if message["role"] == "assistant" else {}
    return {**message, **thought}


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
