"""Is greedy speculative output the target's own, token for token; and where it is not, by how little the target chose.

A target that reads several tokens in one forward adds in another order than one that reads them singly, so that two
tokens whose logits agree in all but the last bits may change places. The gap tells such a tie from a fault.
"""

import torch

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.evaluation.prompts import Turn
from eaglepipe.target.capture import HFEagle3TargetModel


def first_difference(
    model: HFEagle3TargetModel, turns: list[Turn], alone: DecodedAnswers, run: DecodedAnswers
) -> str | None:
    """The first prompt and position at which the runs differ, in words; None where they do not."""
    for number, (turn, own, other) in enumerate(zip(turns, alone.answers, run.answers, strict=True)):
        if own.token_ids == other.token_ids:
            continue
        pairs = enumerate(zip(own.token_ids, other.token_ids, strict=False))
        position = next((i for i, (a, b) in pairs if a != b), min(len(own.token_ids), len(other.token_ids)))
        if position >= min(len(own.token_ids), len(other.token_ids)):
            return f"prompt {number} ({turn.label}): one answer ends after {position} tokens, the other goes on"
        a, b = own.token_ids[position], other.token_ids[position]
        gap, top = _gap(model, [*turn.prompt.tolist(), *own.token_ids[:position]], a, b)
        return (
            f"prompt {number} ({turn.label}), new token {position}: {a} alone, {b} with the draft; "
            f"their logits differ by {gap:.3g} at {top:.3g}"
        )
    return None


def num_different(alone: DecodedAnswers, run: DecodedAnswers) -> int:
    """Prompts whose answers differ."""
    return sum(a.token_ids != b.token_ids for a, b in zip(alone.answers, run.answers, strict=True))


def _gap(model: HFEagle3TargetModel, sequence: list[int], a: int, b: int) -> tuple[float, float]:
    ids = torch.tensor([sequence], device=model.target.device)
    logits = model.head_logits(model.capture(ids, torch.ones_like(ids)).last_hidden[0, -1:])[0]
    return float(logits[a] - logits[b]), float(logits[a])
