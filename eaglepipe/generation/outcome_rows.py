"""Rows of the log of `data regenerate`: one for each input row, with the rows of the output that it becomes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.generation.rewrite import Rewritten
from eaglepipe.recipe.tree import Recipe

FORMAT = 2  # of the output's rows: token ids beside the messages
RowOf = Callable[[Conversation, Rewritten], dict[str, Any]]


def rows_of_outcomes(recipe: Recipe, chat: ChatTokenizer) -> RowOf:
    """Return the function from a conversation and its outcome to the row of the log."""
    return partial(_row, tokenizer=chat.fingerprint(), last_only=recipe.data.supervise == "last")


def faulty_row(row: FaultyRow) -> dict[str, Any]:
    """Return the row of the log of an input row that cannot be read."""
    return {"status": "error", "reason": row.reason, "detail": row.detail, "source": row.source, "where": row.where}


def _row(conversation: Conversation, rewritten: Rewritten, *, tokenizer: str, last_only: bool) -> dict[str, Any]:
    """Return the row of the log with a conversation's outcome."""
    identity = {"id": conversation.sample_id, "source": conversation.source, "where": conversation.where}
    outcome = {"status": rewritten.status, "reason": rewritten.reason, "detail": rewritten.detail, **identity}
    if rewritten.status != "written":
        return outcome
    rows = [
        {
            "id": conversation.sample_id if number == 1 else f"{conversation.sample_id}#{number}",
            "source": conversation.source,
            "messages": list(row.messages),
            **({"tools": list(conversation.tools)} if conversation.tools else {}),
            "input_ids": row.input_ids.tolist(),
            "loss_mask": row.loss_mask.astype(int).tolist(),
            "tokenizer": tokenizer,
        }
        for number, row in enumerate(rewritten.rows, start=1)
    ]
    return {**outcome, "tokens": rewritten.num_tokens, "rows": rows[-1:] if last_only else rows}
