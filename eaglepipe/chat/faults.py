"""Rows that cannot become a sample: a fault of one row never stops the rows beside it."""

from dataclasses import dataclass
from typing import Literal, get_args

from eaglepipe.errors import DataError

Fault = Literal[
    "not_json",
    "too_large",
    "unknown_layout",
    "malformed",
    "unknown_role",
    "no_content",
    "not_text",
    "unreadable_tools",
    "unclear_weight",
    "half_surrogate",
    "template_refuses",
    "no_assistant_turn",
    "no_user_turn",
    "already_tokenised",
    "too_short",
    "token_out_of_range",
    "repeated_id",
    "unreadable_file",
    "missing_field",
    "wrong_shape",
    "not_finite",
    "other_tokens",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
"""Reasons that are a fault of the row; all others (too long, duplicate, ...) follow from the recipe's settings."""


FAULTS_OF_CONVERSATIONS = frozenset(
    {
        "template_refuses",
        "no_assistant_turn",
        "no_user_turn",
        "already_tokenised",
        "too_short",
        "token_out_of_range",
        "repeated_id",
    }
)
"""Faults of rows that were read well; the rows with others are no part of a corpus's fingerprint."""


class RowError(DataError):
    """One row that cannot be used; `reason` is one of few, for counting, and the message says all."""

    def __init__(self, reason: Fault, message: str) -> None:
        super().__init__(message)
        self.reason: Fault = reason


@dataclass(frozen=True, kw_only=True)
class FaultyRow:
    """A row of a source that cannot be used."""

    where: str  # "file:line" or the like
    source: str
    reason: Fault
    detail: str  # the full message; begins with `where`
