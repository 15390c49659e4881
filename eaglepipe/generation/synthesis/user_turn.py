"""The start of a user's turn, found in any chat template by rendering marks in the place of the user's words.

A target that reads its template up to there writes the user's turn itself (Magpie, arXiv 2406.08464).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.messages import Message
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TemplateError

_MARKS = (
    "What quexlimvar oak",
    "the zwolnabrik elm",
    "7301 pimglort",
    '(say "vunkrasp"\nand go',
)  # begin in different ways


@dataclass(frozen=True, kw_only=True)
class UserTurn:
    """What the target reads before the user's first word, and what ends the user's turn."""

    token_ids: NDArray[np.int32]  # [T]
    end_ids: frozenset[int]  # the special token that the template writes after the user's words, if there is one
    end_text: str  # the text between the words and that token, or all that follows them on their line

    def words(self, text: str) -> tuple[str, bool]:
        """Return the user's words in a text that was generated, and whether the end of the turn is in it."""
        if not self.end_text:
            return text.strip(), False
        before, found, _ = text.partition(self.end_text)
        return before.strip(), bool(found)


def special_ids(chat: ChatTokenizer) -> frozenset[int]:
    """Return the ids that no user writes: special tokens, and added ones that are more than spaces."""
    tokenizer = chat.tokenizer
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset(tokenizer.all_special_ids) | frozenset(added)


def find_user_turn(chat: ChatTokenizer, before: Sequence[Message] = ()) -> UserTurn:
    """Return the start of the user's turn after other messages, as the target's template has it.

    Raises:
        TemplateError: the template refuses the messages, or does not write the user's words once and as they are; or
            the tokenizer merges them with the header of the turn.
    """
    texts = [chat.template.render([*before, {"role": "user", "content": mark}], prompt=True) for mark in _MARKS]
    parts = {_around(text, mark) for text, mark in zip(texts, _MARKS, strict=True)}
    if len(parts) > 1:
        raise TemplateError(
            "data synthesize: the chat template writes other text around other words of a user, so the start of a "
            "user's turn cannot be found; give data.chat_template one that does not"
        )
    head, tail = parts.pop()
    end_ids, end_text = _end(chat, tail)
    return UserTurn(token_ids=_head_ids(chat, head, texts), end_ids=end_ids, end_text=end_text)


def _around(text: str, mark: str) -> tuple[str, str]:
    """Return the text before and after a mark."""
    if (count := text.count(mark)) != 1:
        found = f"{count} times" if count else "not as it is"
        raise TemplateError(
            f"data synthesize: the chat template writes a user's message {found}, so the start of a user's turn cannot "
            "be found; give data.chat_template one that writes it once, as it is"
        )
    head, _, tail = text.partition(mark)
    return head, tail


def _head_ids(chat: ChatTokenizer, head: str, texts: Sequence[str]) -> NDArray[np.int32]:
    """Return the tokens of a header, without spaces at its end that belong to the first word's token."""
    wholes = [chat.token_ids(text) for text in texts]
    for start in dict.fromkeys((head, head.rstrip(" "), head.rstrip())):
        ids = chat.token_ids(start)
        if len(ids) and all(np.array_equal(ids, whole[: len(ids)]) for whole in wholes):
            return ids
    if not head:
        raise TemplateError(
            "data synthesize: the chat template writes nothing before a user's message, so the target cannot be made "
            "to begin one; give data.chat_template one with a header for it"
        )
    raise TemplateError(
        f"data synthesize: the tokenizer merges the end of the user's header, {head[-16:]!r}, with the first word, so "
        "the target cannot begin a user's turn there; give data.chat_template a header that ends where a token ends"
    )


def _end(chat: ChatTokenizer, tail: str) -> tuple[frozenset[int], str]:
    """Return the special token that ends a turn, if there is one, and the text that does so before it."""
    special = special_ids(chat)
    ids = chat.token_ids(tail).tolist()
    first = next((index for index, token in enumerate(ids) if token in special), None)
    if first is None:
        return frozenset(), tail.strip().partition("\n")[0].strip()
    between = str(chat.tokenizer.decode(ids[:first], skip_special_tokens=False))
    return frozenset({ids[first]}), between.strip()
