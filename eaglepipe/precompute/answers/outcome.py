"""What became of one prompt: rows of token ids as `data.sources` reads them, or the reason that there are none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from eaglepipe.cache.sidecar import EMPTY_ANSWER, LONG_ANSWER, UNANSWERED, UNFINISHED
from eaglepipe.cache.writer import RefusedItem
from eaglepipe.chat.tokens import TokenSample, cut_sample
from eaglepipe.generation.rewrite import Rewritten
from eaglepipe.generation.token_rows import AnswerRow
from eaglepipe.precompute.answers.prompts import numbered_id
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedPrompt

_CAUSES = {
    "unfinished after max_new_tokens": UNFINISHED,
    "empty answer": EMPTY_ANSWER,
    "the target gave NaN or Inf": None,  # refused, as samples without finite states are
}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The rows of one prompt, or the reason, led by its cause, that there are none."""

    sample_id: str
    rows: tuple[dict[str, Any], ...]
    refused: str = ""

    def samples(self, inputs: Stage1Inputs) -> Iterator[TokenSample | RefusedItem]:
        """Yield the samples of the rows, cut to length, and what is left out, with its reason."""
        if self.refused:
            yield self.sample_id, self.refused
        for row in self.rows:
            input_ids = np.array(row["input_ids"], dtype=np.int32)
            mask = np.array(row["loss_mask"], dtype=np.bool_)
            starts = mask & ~np.concatenate(([False], mask[:-1]))
            turns = np.where(mask, np.cumsum(starts), 0).astype(np.int32)
            whole = TokenSample(sample_id=row["id"], source=row["source"], input_ids=input_ids, turns=turns)
            cut = cut_sample(whole, inputs.recipe.data, inputs.spec.vocab_size)
            yield cut if isinstance(cut, TokenSample) else (row["id"], f"{LONG_ANSWER}: {cut[1]}")


def answered(prompt: StagedPrompt, rewritten: Rewritten, inputs: Stage1Inputs, *, tokenizer: str) -> Answered:
    """Return the outcome of a staged prompt.

    Args:
        tokenizer: fingerprint of the tokenizer of its ids.
    """
    data = inputs.recipe.data
    assert data.generate is not None
    if rewritten.status != "written":
        return Answered(sample_id=prompt.sample_id, rows=(), refused=_reason(rewritten))
    fields, rows = prompt.fields, []
    for part, row in enumerate(rewritten.rows):
        sample_id = numbered_id(fields["id"], fields["number"] + part * data.generate.n)
        rows.append(_row(row, sample_id, prompt.source, tools=fields["tools"], tokenizer=tokenizer))
    return Answered(sample_id=prompt.sample_id, rows=tuple(rows[-1:] if data.supervise == "last" else rows))


def _reason(rewritten: Rewritten) -> str:
    cause = _CAUSES.get(rewritten.reason, UNANSWERED)
    detail = ": ".join(part for part in (rewritten.reason, rewritten.detail) if part)
    return detail if cause is None else f"{cause}: {detail}"


def _row(row: AnswerRow, sample_id: str, source: str, *, tools: Any, tokenizer: str) -> dict[str, Any]:
    """Return a row as `data regenerate` writes it."""
    return {
        "id": sample_id,
        "source": source,
        "messages": list(row.messages),
        **({"tools": tools} if tools else {}),
        "input_ids": row.input_ids.tolist(),
        "loss_mask": row.loss_mask.astype(int).tolist(),
        "tokenizer": tokenizer,
    }
