"""Rows of token ids from the prompts and answers of one conversation.

A turn joins the row of the turn before it if its prompt begins with that row's tokens; a template that rewrites
earlier turns begins a new row, so that each answer stands behind exactly the tokens that it was generated from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.messages import Message


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """Tokens [T] as the target read and wrote them, the mask of those it wrote, and the messages up to the last."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    messages: tuple[Message, ...]


def add_turn(
    rows: Sequence[AnswerRow], prompt: NDArray[np.int32], answer: NDArray[np.int32], messages: tuple[Message, ...]
) -> list[AnswerRow]:
    """Return the rows with one more turn, in the last of them or in one of its own.

    Turns are counted by runs of the mask, so two without a token between them are never in one row.
    """
    joins = False
    loss_mask = np.zeros(len(prompt), dtype=np.bool_)
    if rows:
        length = len(rows[-1].input_ids)
        joins = length < len(prompt) and np.array_equal(prompt[:length], rows[-1].input_ids)
        if joins:
            loss_mask[:length] = rows[-1].loss_mask
    row = AnswerRow(
        input_ids=np.concatenate([prompt, answer]).astype(np.int32),
        loss_mask=np.concatenate([loss_mask, np.ones(len(answer), dtype=np.bool_)]),
        messages=messages,
    )
    return [*(rows[:-1] if joins else rows), row]
