"""Requests to a server and what its replies hold, in the dialects that servers speak.

`tokens`: prompts as token ids, answers with theirs (vLLM, SGLang). `text`: prompts as token ids, answers as text.
`chat`: messages, which the server renders by its own template; `chat_ids`, if the answers' token ids come with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eaglepipe.chat.messages import Message
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.generation.answering import Answer, Prompt, Sampling, Unanswered
from eaglepipe.generation.endpoint.failures import PassingError

TOKENS, TEXT, CHAT, CHAT_IDS = "tokens", "text", "chat", "chat_ids"
_ENDED = ("stop", "tool_calls", "function_call", "eos")
_WITHOUT_DEFAULTS = {  # of the model's generation config, which servers of open models apply
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class TextReply:
    """An answer as text, to be tokenised; `message` if the server took it apart."""

    text: str
    ended: bool
    completion_tokens: int | None
    other_prompt: bool = False
    message: Message | None = None


Reply = Answer | TextReply


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How a run's prompts are put to servers, and how replies are read."""

    chat: ChatTokenizer
    sampling: Sampling
    stop_ids: frozenset[int]
    vocab_size: int
    request: Mapping[str, Any]

    def body(self, dialect: str, model: str, prompt: Prompt, *, max_tokens: int | None = None) -> dict[str, Any]:
        """Return the fields of a request."""
        fields: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens or self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": prompt.seed,
            "stream": False,
        }
        if dialect in (CHAT, CHAT_IDS):
            fields["messages"] = list(prompt.messages)
            if prompt.tools:
                fields["tools"] = list(prompt.tools)
        else:
            fields["prompt"] = prompt.token_ids.tolist()
        if dialect != CHAT:
            fields |= _WITHOUT_DEFAULTS | {"return_token_ids": True, "stop_token_ids": sorted(self.stop_ids)}
            variables = dict(self.chat.template.variables)
            if dialect == CHAT_IDS and variables:
                fields["chat_template_kwargs"] = variables
        return fields | dict(self.request)

    def read(self, dialect: str, prompt: Prompt, document: dict[str, Any]) -> Reply:
        """Return the reply that a server's JSON holds.

        Raises:
            PassingError: it is malformed, or at odds with itself.
        """
        choices = document.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise PassingError("an answer without choices")
        choice, usage = choices[0], document.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        finish = choice.get("finish_reason")
        if finish == "content_filter":
            filtered = Unanswered(status="skipped", reason="filtered by the endpoint")
            return Answer(token_ids=np.empty(0, dtype=np.int32), ended=False, unanswered=filtered)
        if finish != "length" and finish not in _ENDED:
            raise PassingError(f"an answer that ended by {finish!r:.40}")
        ended, completion_tokens = finish != "length", _count(counts.get("completion_tokens"))
        if dialect in (TOKENS, CHAT_IDS):
            shown = choice.get("text") if dialect == TOKENS else None
            ids = self._ids(choice, completion_tokens, shown, ended=ended)
            other = dialect == CHAT_IDS and self._reads_otherwise(prompt, document, choice, counts)
            answer_ids = np.array(ids, dtype=np.int32)
            return Answer(token_ids=answer_ids, ended=ended, figures={"other_prompt": 1} if other else {})
        message = choice.get("message")
        if dialect == TEXT:
            text = choice.get("text")
        else:
            text = message.get("content") if isinstance(message, dict) else None
            text = "" if text is None and isinstance(message, dict) else text
        if not isinstance(text, str):
            raise PassingError("an answer without text")
        return TextReply(
            text=text,
            ended=ended,
            completion_tokens=completion_tokens,
            other_prompt=dialect == CHAT and self._reads_otherwise(prompt, document, choice, counts),
            message=_taken_apart(message) if dialect == CHAT else None,
        )

    def _ids(self, choice: dict[str, Any], completion_tokens: int | None, shown: Any, *, ended: bool) -> list[int]:
        """Return the token ids of an answer, with the one that ended it."""
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise PassingError("an answer without token ids")
        if any(not 0 <= token < self.vocab_size for token in ids):
            raise PassingError("token ids outside the target's vocabulary")
        if len(ids) > self.sampling.max_new_tokens + 1 or completion_tokens not in (None, len(ids), len(ids) + 1):
            raise PassingError("another number of token ids than of generated tokens")
        if not ended:
            return self._as_shown(ids, ids, shown)
        if ids and ids[-1] in self.stop_ids:
            return self._as_shown(ids, ids[:-1], shown)
        matched = next((choice[name] for name in ("stop_reason", "matched_stop") if _is_id(choice.get(name))), None)
        if matched is not None and matched < self.vocab_size and (not ids or ids[-1] != matched):
            return [*self._as_shown(ids, ids, shown), matched]
        if isinstance(shown, str) and ids and _same(shown, self.decode(ids[:-1])):
            return ids  # an end of the server's own
        return [*self._as_shown(ids, ids, shown), self.end]

    def _as_shown(self, ids: list[int], body: list[int], shown: Any) -> list[int]:
        if isinstance(shown, str) and not _same(shown, self.decode(body)) and not _same(shown, self.decode(ids)):
            raise PassingError("token ids that are not those of its text")
        return ids

    @property
    def end(self) -> int:
        """The token that ends an answer of which only the text is known."""
        named = (self.chat.end_of_turn, self.chat.tokenizer.eos_token_id)
        return next((end for end in named if end is not None), min(self.stop_ids, default=0))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without special tokens."""
        return str(self.chat.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _reads_otherwise(
        self, prompt: Prompt, document: dict[str, Any], choice: dict[str, Any], counts: dict[str, Any]
    ) -> bool:
        """Return whether the server's template is known to have rendered another prompt than ours."""
        own = prompt.token_ids.tolist()
        theirs = document.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if isinstance(theirs, list):
            return theirs != own
        number = _count(counts.get("prompt_tokens"))
        return number is not None and number != len(own)


def _same(text: str, other: str) -> bool:
    """Compare texts without spaces and halves of characters, which servers treat in their own ways."""
    return _bare(text) == _bare(other)


def _bare(text: str) -> str:
    return "".join(text.split()).replace("\N{REPLACEMENT CHARACTER}", "")


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _taken_apart(message: Any) -> Message | None:
    """Return a message with fields beside its text, or None."""
    if not isinstance(message, dict):
        return None
    names = ("reasoning_content", "reasoning", "tool_calls")
    parts = {name: message[name] for name in names if message.get(name)}
    if not parts:
        return None
    if "reasoning" in parts:
        parts.setdefault("reasoning_content", parts.pop("reasoning"))
    return {"role": "assistant", "content": message.get("content") or "", **parts}
