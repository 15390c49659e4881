"""Answers of which only the text is known, as the ids that the tokenizer gives, which may not be those sampled."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.messages import Message
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TemplateError
from eaglepipe.generation.answering import Answer, Prompt, Unanswered
from eaglepipe.generation.endpoint.dialects import Speech, TextReply

_UNSHOWN = Unanswered(status="skipped", reason="the template does not show the answer of the endpoint")


def tokenised(speech: Speech, prompt: Prompt, reply: TextReply) -> Answer:
    """Return the answer with the ids of its text; its figures tell whether they can be those that were sampled."""
    if reply.message is not None:
        ids = _rendered(speech, prompt, reply.message)
        if ids is None:
            return Answer(token_ids=np.empty(0, dtype=np.int32), ended=False, unanswered=_UNSHOWN)
    else:
        ids = _ids_after(speech.chat, prompt, prompt.text + reply.text, reply.text)
    if reply.ended:
        ids = np.append(ids, np.int32(speech.end)).astype(np.int32)
    figures = {"tokenised": 1, "other_prompt": int(reply.other_prompt)}
    if reply.completion_tokens is None:
        figures["of_unknown_length"] = 1
    elif not len(ids) - 1 <= reply.completion_tokens <= len(ids):
        figures["of_other_length"] = 1
    return Answer(token_ids=ids, ended=reply.ended, figures={name: count for name, count in figures.items() if count})


def _ids_after(chat: ChatTokenizer, prompt: Prompt, whole: str, text: str) -> NDArray[np.int32]:
    """Return the ids of a text behind its prompt."""
    ids, start = chat.token_ids(whole), len(prompt.token_ids)
    joined = len(ids) >= start and np.array_equal(ids[:start], prompt.token_ids)
    return ids[start:] if joined else chat.token_ids(text)


def _rendered(speech: Speech, prompt: Prompt, message: Message) -> NDArray[np.int32] | None:
    """Return the ids of an answer that the server took apart, up to its end, as our template writes it."""
    message = {**message, **({"tool_calls": _with_objects(message["tool_calls"])} if "tool_calls" in message else {})}
    try:
        whole = speech.chat.template.render([*prompt.messages, message], prompt.tools)
    except TemplateError:
        return None
    if not prompt.text or not whole.startswith(prompt.text):
        return None
    ids = _ids_after(speech.chat, prompt, whole, whole[len(prompt.text) :])
    ends = np.flatnonzero(np.isin(ids, list(speech.stop_ids)))
    return ids[: ends[0]] if len(ends) else ids


def _with_objects(calls: Any) -> list[Any]:
    """Return calls whose arguments are objects, as templates take them, not JSON."""
    listed = calls if isinstance(calls, list) else []
    return [_with_object(call) for call in listed]


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call
